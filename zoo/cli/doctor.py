"""`zoo doctor`: what this machine can train, export and run, and the line that installs what is missing.

Looks packages up without importing them: importing a broken torch is what one would want to be warned of.
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import click

from .. import machine
from ..registry import get_registry
from ..specs import Architecture, Exporter, Precision, Runtime, absent, install_line
from .common import emit_json, json_option, table

PACKAGES = (
    ("numpy", "everything"),
    ("pillow", "everything"),
    ("onnxruntime", "running"),
    ("torch", "training, exporting"),
    ("torchvision", "training"),
    ("lightning", "training"),
    ("safetensors", "training, exporting"),
    ("matplotlib", "training"),
    ("scikit-learn", "zoo demo"),
    ("timm", "zoo-timm's architectures"),
    ("onnx", "exporting"),
    ("onnxscript", "exporting"),
    ("onnxslim", "exporting"),
)
TRAIN = ("torch", "torchvision", "lightning", "safetensors", "matplotlib")

FEATURES = {
    "int8": ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"),
    "bf16": ("avx512_bf16", "amx_bf16", "bf16"),
    "fp16": ("avx512_fp16", "asimdhp"),
}
"""CPU flags as Linux names them (x86 and Arm), by the number format that they speed up."""


def cpu() -> dict[str, Any]:
    """Name, cores that this process may use, and which number formats the CPU has instructions for."""
    name, flags = machine.cpu()
    fast = {form: [f for f in names if f in flags] for form, names in FEATURES.items()}
    return {
        "name": name,
        "machine": platform.machine(),
        "cores": machine.cores(),
        "fast": {k: v for k, v in fast.items() if v},
    }


def gpus() -> list[str]:
    """Names of the NVIDIA GPUs that the driver's own tool reports."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    try:
        done = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [m[1] for m in re.finditer(r"^GPU \d+: (.+?) \(UUID", done.stdout, re.M)] if done.returncode == 0 else []


def mismatches(have: dict[str, str] | None = None, requires: Sequence[str] | None = None) -> list[str]:
    """Installed packages that do not go together, each with its cure."""
    if have is None:
        have = machine.versions(("torch", "torchvision", "onnxruntime", "onnxruntime-gpu"))
    problems = []
    torch, vision = have.get("torch", ""), have.get("torchvision", "")
    if torch and vision:
        if requires is None:
            requires = importlib.metadata.requires("torchvision") or ()
        wanted = next((m[1] for r in requires if (m := re.match(r"torch\s*\(?==\s*([0-9.]+)", r))), "")
        kind = [v.partition("+")[2] for v in (torch, vision)]
        if wanted and torch.partition("+")[0] != wanted:
            problems.append(
                f"torchvision {vision} is made for torch {wanted}, but torch {torch} is installed: "
                f"pip install torch=={wanted}, or upgrade both together"
            )
        elif ("cpu" in kind) and kind[0] != kind[1]:
            problems.append(
                f"torch {torch} and torchvision {vision} are of different builds (one is for the CPU alone): "
                "install both from the same index"
            )
    if have.get("onnxruntime") and have.get("onnxruntime-gpu"):
        problems.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: pip uninstall one, reinstall the other"
        )
    return problems


def examine() -> dict[str, Any]:
    """Everything that doctor tells, JSON-ready."""
    registry = get_registry()
    here = machine.versions(name for name, _ in PACKAGES)
    packages = {name: here.get(name, "") for name, _ in PACKAGES}

    def can(verb: str, what: str, missing: Sequence[str], install: str) -> dict[str, Any]:
        return {"verb": verb, "what": what, "missing": list(missing), "install": install if missing else ""}

    lacking = [p for p in TRAIN if not packages[p]]
    abilities = [can("train", "fine-tune and evaluate", lacking, install_line("torch"))]
    abilities += [
        can("export", f"{e.reads} to {e.writes}", gone, e.install or install_line(gone[0]) if gone else "")
        for e in registry.specs(Exporter)
        for gone in [absent(e)]
    ]
    abilities += [
        can("export", f"{p.reads} to {p.precision}", gone, p.install or install_line(gone[0]) if gone else "")
        for p in registry.specs(Precision)
        for gone in [absent(p)]
    ]
    if not registry.specs(Exporter):
        abilities.append(can("export", "to onnx", ["zoo-export"], install_line("zoo_export")))
    abilities += [
        can("run", f"{', '.join(r.reads)} with {r.name}", gone, r.install or install_line(gone[0]) if gone else "")
        for r in registry.specs(Runtime)
        for gone in [absent(r)]
    ]
    problems = mismatches()
    problems += [f"plugin {p.name}: {p.error}" for p in registry.plugins if p.error]
    if not registry.specs(Architecture):
        problems.append("no plugin brings an architecture: pip install zoo-timm zoo-classic zoo-segment zoo-detect")
    return {
        "zoo": get_registry().plugins[0].version,
        "python": sys.version.split()[0],
        "system": platform.platform(),
        "cpu": cpu(),
        "gpus": gpus(),
        "architectures": len(registry.specs(Architecture)),
        "packages": packages,
        "abilities": abilities,
        "problems": problems,
    }


@click.command("doctor")
@json_option
def command(as_json: bool) -> None:
    """Say what this machine can train, export and run, and what to install for the rest.

    \b
    Examples:
      zoo doctor
      zoo doctor --json
    """
    found = examine()
    if as_json:
        emit_json(found)
        return
    processor = found["cpu"]
    fast = "; ".join(f"{k}: {', '.join(v)}" for k, v in processor["fast"].items()) or "no fast int8, bf16 or fp16 seen"
    click.echo(f"zoo {found['zoo']}, Python {found['python']}, {found['system']}")
    click.echo(f"CPU  {processor['name']}, {processor['cores']} cores ({fast})")
    click.echo(f"GPU  {', '.join(found['gpus']) or 'none seen'}")
    click.echo(f"{found['architectures']} architectures\n")
    click.echo(
        table(
            [
                (a["verb"], a["what"], "no" if a["missing"] else "yes", ", ".join(a["missing"]), a["install"])
                for a in found["abilities"]
            ],
            ["can it", "", "", "missing", "install it with"],
        )
    )
    click.echo()
    click.echo(
        table([(n, found["packages"][n] or "-", why) for n, why in PACKAGES], ["package", "version", "is needed for"])
    )
    for problem in found["problems"]:
        click.echo(f"\nproblem: {problem}")
    if not found["problems"]:
        click.echo("\nno problem found")
