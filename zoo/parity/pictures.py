"""The gate of images that two networks make of the same inputs: how far apart their pixels are, in steps of 255."""

from __future__ import annotations

from collections.abc import Iterable

from ..tasks.pictures import PictureTask
from . import FAIL, PASS, Candidate, Finding, Reference, Samples

__all__ = ["pixels"]


def pixels(candidate: Candidate, reference: Reference, samples: Samples) -> Iterable[Finding]:
    """One finding where the task makes images and both sides' are at hand: it fails where the worst image's PSNR is below
    ``tolerances["pixels_psnr"]``, and where a side has not one image for each input. Targets are not needed."""
    half = samples.half
    if not isinstance(half, PictureTask) or not candidate.results or not reference.results:
        return []
    for who, results in (("candidate", candidate.results), ("reference", reference.results)):
        if len(results) != len(samples.ids):
            said = (
                f"the {who} made {len(results)} images of {len(samples.ids)} inputs: the graph loses images of a batch"
            )
            return [Finding(gate="pixels", verdict=FAIL, message=said)]
    for name, ours, theirs in zip(samples.ids, candidate.results, reference.results, strict=True):
        if ours.pixels.shape != theirs.pixels.shape:
            sizes = " and ".join(f"{r.width}x{r.height}x{r.pixels.shape[2]}" for r in (ours, theirs))
            return [
                Finding(gate="pixels", verdict=FAIL, message=f"{name}: the images are {sizes} and cannot be compared")
            ]
    found = half.differences(candidate.results, reference.results)
    least = candidate.tolerances.get("pixels_psnr", 0.0)  # a stranger's task may have no bound: then it is told
    said = (
        f"of 255 steps {found['mean']:.3f} apart on average, {found['max']:.0f} at most, {100 * found['share_beyond_1']:.2f} % "
        f"of the values by more than 1; PSNR {found['psnr_db']:.1f} dB, {found['worst_psnr_db']:.1f} in the worst of {len(candidate.results)} "
        f"images ({least:g} needed); SSIM {found['ssim']:.4f}"
    )
    verdict = PASS if found["worst_psnr_db"] >= least else FAIL
    return [Finding(gate="pixels", verdict=verdict, message=said, figures={**found, "least_psnr_db": least})]
