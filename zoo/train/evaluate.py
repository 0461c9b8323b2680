"""Runs a network over a data set, in float32, through the module that is exported: the figures that are reported."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..data import Dataset
from ..errors import DataError
from ..parity.evidence import Batch, Kept, batch_size, observe, prepared_batches
from ..runtime.whole import made_of
from ..tasks import Meter, TaskHalf, measure
from ..tasks.pictures import PictureTask
from .models import Model, deployable, half_of

__all__ = ["Evaluation", "evaluate", "evaluate_set"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """A network's answers on a data set, and the task's figures of them."""

    half: TaskHalf
    results: Sequence[Any]
    """N result records, decoded for judging."""
    targets: Sequence[Any]
    meter: Meter
    lpips: Mapping[str, Any] = field(default_factory=dict)
    """Of images beside their targets, where its network is at hand (:func:`zoo.train.lpips.lpips`)."""

    @property
    def figures(self) -> dict[str, Any]:
        found = self.meter.compute()
        if not self.lpips:
            return found
        return {**{k: v for k, v in found.items() if isinstance(v, float)}, **self.lpips, **found}


@torch.no_grad()
def evaluate_set(
    model: Model, data: Dataset, *, count: int = 1000, device: torch.device | str = "cpu", features: str = "random"
) -> dict[str, Any]:
    """Figures of a network whose images have no right answer, as a set against real ones (:mod:`zoo.train.quality`).

    ``data``: real images for a generator, two sets for translation without pairs. Raises DataError where there are no
    real images to compare with.
    """
    from .quality import judge_set

    half = half_of(model)
    judged = half.samples(data.relabelled(model.labels), model.input, model.labels, count)
    if not judged.others:
        raise DataError(f"{data.root} holds nothing that what {model.architecture.name} makes could be compared with")
    module = deployable(model).to(device).float()

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        raw = module(torch.from_numpy(batch).to(device))
        return {name: value.cpu().numpy() for name, value in zip(model.task.outputs, raw, strict=True)}

    return judge_set(run, judged, model.input, half, model.makes or model.input, features, model.labels)


@torch.no_grad()
def evaluate(
    model: Model,
    data: Dataset,
    *,
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """The evaluated network over ``data``. Labels are matched by name.

    Raises DataError where the data has a label that the network has not, ImageError.
    """
    half = half_of(model)
    data = half.samples(data.relabelled(model.labels), model.input, model.labels)
    module = deployable(model).to(device).float()
    # twice as fast on depthwise convolutions, and the same numbers to within rounding
    layout = torch.channels_last if min(model.input.height, model.input.width) >= 64 else torch.contiguous_format
    module = module.to(memory_format=layout)
    names = model.task.outputs
    needed = set(half.decodes(names))

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        raw = module(torch.from_numpy(batch).to(device).contiguous(memory_format=layout))
        return {name: value.cpu().numpy() for name, value in zip(names, raw, strict=True) if name in needed}

    def batches() -> Iterator[Batch]:
        size = batch_size(model.input) if layout == torch.channels_last else 256
        yield from prepared_batches([s.image for s in data], model.input, size, progress)

    if isinstance(half, PictureTask) and model.input.resize == "crop":
        # as they are, at their own size: what a user will see
        found = Kept(half, model.labels)
        for done, sample in enumerate(data, start=1):
            found.extend([made_of(run, sample.image, model.input, half, name=sample.id)])
            progress(done)
        results: Sequence[Any] = found
    else:
        results = observe(run, batches(), half, model.labels, model.input).results
    module.to(memory_format=torch.contiguous_format)
    meter = measure(half, model.labels, results, data.targets)
    told = {}
    if isinstance(half, PictureTask):
        from .lpips import beside_targets, lpips

        told = lpips(beside_targets(results, data.targets, half.scale), device)
    return Evaluation(half=half, results=results, targets=data.targets, meter=meter, lpips=told)
