"""`zoo doctor`: what this machine can train, export and run, and the line that installs what is missing.

Looks packages up without importing them: importing a broken torch is what one would want to be warned of.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from .. import machine
from ..registry import get_registry
from ..runtime.tensorrt.api import INSTALL, MODULES, TITLES
from ..specs import Architecture, Exporter, Precision, Runtime, absent, install_line, resolve
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
    ("tensorrt", "TensorRT's engines"),
    ("tensorrt-rtx", "TensorRT-RTX's engines; linting with NVIDIA's parser"),
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


PATIENCE_S = 60.0
"""How long finding NVIDIA's libraries may take: they are some hundred MB, and a slow disk has to read them."""


def ask(questions: Mapping[str, str]) -> dict[str, str]:
    """By name, what the ``() -> str`` behind a dotted path answers.

    Asked in a process of its own, because what they look for (NVIDIA's libraries above all) does not always survive
    being imported, and is heavy where it does. Where the process ends or hangs, the question that it was at is answered
    by that, and another process goes on with the next.
    """
    answers: dict[str, str] = {}
    pending = dict(questions)
    while pending:
        end = _ask_child(pending, answers)
        pending = {name: path for name, path in pending.items() if name not in answers}
        if pending:
            culprit = next(iter(pending))
            answers[culprit] = end
            del pending[culprit]
    return answers


def _ask_child(questions: Mapping[str, str], answers: dict[str, str]) -> str:
    """Fill in ``answers`` as far as one process gets, and say how it ended."""
    command = [sys.executable, "-c", "from zoo.cli.doctor import _answer; _answer()", json.dumps(dict(questions))]
    try:
        done = subprocess.run(command, capture_output=True, timeout=PATIENCE_S, check=False)
        said, end = done.stdout, f"looking for it ends the process (exit code {done.returncode})"
    except OSError as error:
        return f"no process could be started: {error.strerror}"
    except subprocess.TimeoutExpired as error:
        said, end = error.stdout or b"", f"looking for it did not end within {PATIENCE_S:.0f} s"
    for line in said.decode("utf-8", "replace").splitlines():
        if line.startswith(_ANSWER):
            name, text = json.loads(line.removeprefix(_ANSWER))
            answers[name] = text
    return end


_ANSWER = "zoo doctor: "
"""Tells an answer from whatever else the libraries print."""


def _answer() -> None:
    """The child's side of :func:`ask`."""
    for name, path in json.loads(sys.argv[1]).items():
        try:
            text = str(resolve(path, name)())
        except Exception as error:  # a stranger's probe, or a library that is broken
            text = f"asking failed: {(str(error).strip().splitlines() or [type(error).__name__])[0]}"
        print(_ANSWER + json.dumps((name, text)), flush=True)


def builds_tensorrt() -> str:
    """Why TensorRT builds no engine here; empty where it does. Imports it."""
    return _builds("tensorrt")


def builds_rtx() -> str:
    """The same of TensorRT-RTX, which needs no GPU for that."""
    return _builds("tensorrt-rtx")


def _builds(flavour: str) -> str:
    from ..runtime.tensorrt import api

    library = api.find(flavour)
    if library is None:
        return api.why_not(flavour)
    return "" if library.builder() is not None else f"{library} makes no builder: it needs an NVIDIA GPU and its driver"


BUILDERS = {"tensorrt": "zoo.cli.doctor:builds_tensorrt", "tensorrt-rtx": "zoo.cli.doctor:builds_rtx"}


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

    def can(verb: str, what: str, missing: Sequence[str], why: str = "", install: str = "") -> dict[str, Any]:
        # what a probe finds wrong is mostly a driver or a GPU, and where it is a package, the probe says so itself
        install = install if missing else ""
        usable = not missing and not why
        return {
            "verb": verb, "what": what, "usable": usable, "missing": list(missing), "why": why, "install": install,
        }  # fmt: skip

    def usable(spec: Exporter | Precision | Runtime) -> tuple[list[str], str, str]:
        gone = absent(spec)
        install = spec.install or (install_line(gone[0]) if gone else "")
        return gone, "" if gone else told.get(spec.name, ""), install

    runtimes = registry.specs(Runtime)
    there = [f for f in BUILDERS if importlib.util.find_spec(MODULES[f]) is not None]
    told = ask(
        {r.name: r.probe for r in runtimes if r.probe and not absent(r)} | {f"build {f}": BUILDERS[f] for f in there}
    )
    lacking = [p for p in TRAIN if not packages[p]]
    abilities = [can("train", "fine-tune and evaluate", lacking, install=install_line("torch"))]
    abilities += [can("export", f"{e.reads} to {e.writes}", *usable(e)) for e in registry.specs(Exporter)]
    abilities += [can("export", _title(p), *usable(p)) for p in registry.specs(Precision)]
    if not registry.specs(Exporter):
        abilities.append(can("export", "to onnx", ["zoo-export"], install=install_line("zoo_export")))
    abilities += [
        can("build", f"{TITLES[f]} engines", [] if f in there else [MODULES[f]], told.get(f"build {f}", ""), INSTALL[f])
        for f in BUILDERS
    ]
    abilities += [can("run", f"{', '.join(r.reads)} with {r.name}", *usable(r)) for r in runtimes]
    problems = mismatches()
    problems += [f"plugin {p.name}: {p.error}" for p in registry.plugins if p.error]
    if not registry.specs(Architecture):
        problems.append("no plugin brings an architecture: pip install zoo-timm zoo-classic zoo-segment zoo-detect")
    return {
        "zoo": get_registry().plugins[0].version,
        "python": sys.version.split()[0],
        "system": platform.platform(),
        "cpu": cpu(),
        "gpus": machine.gpus(),
        "driver_fault": machine.driver_fault(),
        "jetson": machine.jetson(),
        "architectures": len(registry.specs(Architecture)),
        "packages": packages,
        "abilities": abilities,
        "problems": problems,
    }


def _title(spec: Precision) -> str:
    return f"{spec.reads} to {spec.precision}" + (f" for {spec.target}" if spec.target else "")


def _gpu_line(gpu: dict[str, Any]) -> str:
    """``NVIDIA H100, driver 550.90, 81559 MiB, compute capability 9.0, 1980 of 1980 MHz, 700 W at most``."""
    said = [gpu["name"]]
    said += [f"driver {gpu['driver']}"] if "driver" in gpu else []
    said += [f"{gpu['memory_mib']} MiB"] if "memory_mib" in gpu else []
    said += [f"compute capability {gpu['compute_capability']}"] if "compute_capability" in gpu else []
    if "sm_mhz" in gpu:
        said.append(f"{gpu['sm_mhz']} of {gpu.get('sm_max_mhz', '?')} MHz")
    said += [f"{gpu['power_limit_w']:.0f} W at most"] if "power_limit_w" in gpu else []
    return ", ".join(said)


def _missing(packages: Sequence[str], install: str) -> str:
    return f"missing {', '.join(packages)}: {install}" if packages else ""


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
    for gpu in found["gpus"]:
        click.echo(f"GPU  {_gpu_line(gpu)}")
    if not found["gpus"]:
        click.echo("GPU  none seen" + (f": nvidia-smi says: {found['driver_fault']}" if found["driver_fault"] else ""))
    if found["jetson"]:
        click.echo("     " + ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in found["jetson"].items()))
    click.echo(f"{found['architectures']} architectures\n")
    click.echo(
        table(
            [
                (a["verb"], a["what"], "yes" if a["usable"] else "no", a["why"] or _missing(a["missing"], a["install"]))
                for a in found["abilities"]
            ],
            ["can it", "", "", "why not"],
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
