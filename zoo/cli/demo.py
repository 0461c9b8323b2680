"""``zoo demo``: the whole path on handwritten digits, each step a command that a person could type."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import click

from .common import note, table

OLD, NEW = range(5), range(5, 10)
SEED = 7
VAL_SHARE = 0.4  # enough held-out digits for the accuracy gate to reach a verdict

# The device side: nothing of training or export may be there, so the process itself says what it loaded.
DEVICE = """
import sys, zoo.runtime
model = zoo.runtime.load(sys.argv[1])
result = model(sys.argv[2])
from PIL import Image
result.draw(Image.open(sys.argv[2])).save(sys.argv[3])
heavy = sorted({"torch", "onnx", "timm", "lightning"} & set(sys.modules))
assert not heavy, heavy
print(f"{result.label} {result.score:.4f} {model.session.device}")
"""


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("zoo-demo"),
    show_default=True,
    help="Folder to work in; made anew.",
)
@click.option("--quick", is_flag=True, help="Fewer epochs: to see that it works, not how well.")
def command(out: Path, quick: bool) -> None:
    """See the whole path: a LeNet trained on the digits 0 to 4 learns 5 to 9, goes to ONNX in fp32 and int8, is
    proved equal, packed, and run by a process without torch.

    The images are the 1797 handwritten digits that scikit-learn carries.

    \b
    Examples:
      zoo demo
      zoo demo --out /tmp/demo
    """
    from ..errors import MissingPart, OutputError, ZooError
    from ..specs import resolve

    resolve("zoo.train.models:open_model", "zoo demo")
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingPart("scikit-learn, which carries the digits,", "pip install scikit-learn") from None
    marker = out / ".zoo-demo"
    if out.exists() and not marker.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} holds something that is not a demo: choose another --out")
    if out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True)
    marker.touch()
    began = time.monotonic()
    digits = load_digits()
    old, new = out / "digits-0-4", out / "digits-5-9"
    _write_digits(digits.images, digits.target, old, OLD)
    _write_digits(digits.images, digits.target, new, NEW)
    note(f"wrote {len(digits.target)} digits to {old} and {new}")
    base, tuned, bundle, packed = out / "base", out / "tuned", out / "bundle", out / "digits.zoo"
    split = ["--val-share", str(VAL_SHARE), "--seed", str(SEED)]
    epochs = "4" if quick else "12"
    _zoo("finetune", "lenet5", "--weights", "none", "--data", old, "--out", base, "--epochs", epochs, *split)
    _zoo("finetune", base, "--data", new, "--out", tuned, "--epochs", epochs, "--lr", "0.005", *split)
    _zoo("evaluate", tuned, "--data", new)
    _zoo("export", tuned, "--to", "onnx", "--precision", "fp32,int8", "--data", new, "--out", bundle)
    _zoo("pack", bundle, "--out", packed)
    _zoo("selftest", packed)

    from ..bundle import open_bundle
    from ..data import open_data

    held_out = open_data(new, val_share=VAL_SHARE, seed=SEED).val
    sample = held_out[len(held_out) // 2]
    photo, picture = new / sample.id, out / "prediction.png"
    note(f'\n$ python -c \'import zoo.runtime; zoo.runtime.load("{packed}")("{photo}")\'')
    done = subprocess.run(
        [sys.executable, "-c", DEVICE, str(packed), str(photo), str(picture)], capture_output=True, text=True
    )
    if done.returncode:
        raise ZooError(f"the device process failed: {done.stderr.strip().splitlines()[-1:]}")
    label, score, device = done.stdout.strip().split(" ", 2)
    expected = held_out.labels[sample.target]
    with open_bundle(packed) as opened:
        rows = []
        for artifact in opened.artifacts.values():
            size = opened.manifest["files"][artifact.file]["bytes"] / 1e3
            gates = ", ".join(f"{gate} {verdict}" for gate, verdict in artifact.gates.items())
            rows.append((artifact.name, f"{size:.0f}", artifact.status, gates))
    click.echo("")
    click.echo(table(rows, ("artefact", "kB", "status", "gates")))
    click.echo(f"\na held-out {expected} is read as {label} ({100 * float(score):.1f} %) on {device}, without torch")
    click.echo(f"report:  {bundle / 'report.html'}")
    click.echo(f"picture: {picture}")
    click.echo(f"bundle:  {packed} ({packed.stat().st_size / 1e3:.0f} kB), {time.monotonic() - began:.0f} s in all")


def _write_digits(images, targets, folder: Path, wanted: range) -> None:  # type: ignore[no-untyped-def]
    from PIL import Image

    for index, (image, target) in enumerate(zip(images, targets, strict=True)):
        if target in wanted:
            place = folder / str(target)
            place.mkdir(parents=True, exist_ok=True)
            # the set counts ink in 0..16; images count in 0..255
            Image.fromarray((image * (255 / 16)).round().astype("uint8")).save(place / f"{index:04d}.png")


def _zoo(*args: object) -> None:
    """Run one zoo command as a person would, in a process of its own, and pass its exit code on."""
    words = [str(a) for a in args]
    note(f"\n$ zoo {shlex.join(words)}")
    code = subprocess.run([sys.executable, "-m", "zoo", *words]).returncode
    if code:
        raise click.exceptions.Exit(code)
