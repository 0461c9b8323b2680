"""Writes ``architectures.json`` from the installed timm, so that listing a thousand names imports neither timm nor torch.

    python -m zoo_timm.generate            # after an upgrade of timm; some ten minutes, most of them counting MACs
    python -m zoo_timm.generate --check    # says what differs

The file, compact because it is read at every start of ``zoo``:

    timm            version it was made with
    inputs          [height, width, channels, crop, resize, interpolation, mean, std], each once
    licenses, label_sets, heads, modules    texts, each once; the rest of the file counts into these lists
    architectures   name: [module, head, input, parameters, macs, [[tag, input, classes, license, label set], …]]
    left_out        name: why it cannot classify
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import infer_imagenet_subset
from timm.models import get_pretrained_cfg, list_models, list_pretrained
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

FILE = Path(__file__).with_name("architectures.json")

RESIZES = {"center": "shortest", "squash": "squash", "border": "letterbox"}


class Table(list[Any]):
    """A list that hands out indices and keeps each value once."""

    def at(self, value: Any) -> int:
        if value not in self:
            self.append(value)
        return self.index(value)


def recipe(cfg: Any) -> list[Any]:
    """A pretrained configuration's preprocessing, in the order of ``inputs``."""
    channels, height, width = cfg.input_size
    resize = RESIZES[cfg.crop_mode or "center"]
    crop = min(cfg.crop_pct, 1.0)  # three VOLOs say 1.15, which would put a black frame around every photo
    return [height, width, channels, crop, resize, cfg.interpolation, list(cfg.mean), list(cfg.std)]


def head_of(cfg: Any) -> str:
    """Dotted name of the classifier; the common parent where timm names several, else all, comma-separated."""
    names = [cfg.classifier] if isinstance(cfg.classifier, str) else list(cfg.classifier or ())
    if len(names) < 2:
        return "".join(names)
    first = [n.split(".") for n in names]
    common: list[str] = []
    for parts in zip(*first, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common) or ",".join(names)


def build_empty(name: str, **options: Any) -> nn.Module:
    """The network without memory for its weights (on torch's meta device), in eval mode."""
    network: nn.Module
    try:
        with torch.device("meta"):
            network = timm.create_model(name, pretrained=False, **options)
    except (NotImplementedError, RuntimeError, TypeError):  # some compute on values while they are built
        network = timm.create_model(name, pretrained=False, **options).to("meta")
    return network.eval()


def measure(name: str, cfg: Any) -> tuple[int, int]:
    """(parameters, multiply-accumulates of one image; 0 where they cannot be counted)."""
    network = build_empty(name, num_classes=cfg.num_classes)
    parameters = sum(p.numel() for p in network.parameters())
    return parameters, count_macs(network, cfg.input_size)


def count_macs(network: nn.Module, shape: tuple[int, int, int]) -> int:
    """Multiply-accumulates of convolutions and matrix products for one image of ``shape`` (C, H, W)."""
    network.requires_grad_(False)  # the counter follows gradients otherwise, and there are none here
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), counter:
            network(torch.empty(1, *shape, device="meta"))
    except Exception:  # data-dependent control flow has no meaning without data
        return 0
    return counter.get_total_flops() // 2


def why_not(name: str, head: str) -> str:
    """Why a network cannot be made a classifier of 7 classes; empty where it can."""
    if not head:
        return "an encoder without a classifier"
    try:
        network = build_empty(name, num_classes=7)
    except Exception as error:
        return f"cannot be built for another number of classes: {type(error).__name__}"
    for part in head.split(","):
        try:
            module = network.get_submodule(part)
        except AttributeError:
            return f"has no module {part}"
        if not any(True for _ in module.parameters()):
            return "an encoder without a classifier"
    return ""


def collect(names: list[str], known: dict[str, Any] | None = None) -> dict[str, Any]:
    """The file's content for ``names``; figures that ``known`` has are taken from there and not counted again."""
    inputs, licenses, label_sets, heads, modules = Table(), Table(), Table(), Table(), Table()
    tags: dict[str, list[str]] = {}
    for full in list_pretrained():
        name, _, tag = full.partition(".")
        tags.setdefault(name, []).append(tag)
    architectures: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for count, name in enumerate(names):
        default = get_pretrained_cfg(name)
        head = head_of(default)
        old = known and (known["architectures"].get(name) or known["left_out"].get(name))
        known_reason = old if isinstance(old, str) else ""
        reason = known_reason if old is not None else why_not(name, head)
        if reason:
            left_out[name] = reason
            continue
        parameters, macs = (old[3], old[4]) if old else measure(name, default)
        weights = []
        for tag in sorted(tags.get(name, ()), key=lambda t: (t != default.tag, t)):
            cfg = get_pretrained_cfg(f"{name}.{tag}")
            subset = infer_imagenet_subset(cfg.to_dict()) if cfg.num_classes else None
            license = "" if cfg.license in (None, "unknown") else cfg.license
            weights.append(
                [tag, inputs.at(recipe(cfg)), cfg.num_classes, licenses.at(license), label_sets.at(subset or "")]
            )
        module = timm.models._registry._model_to_module[name]
        architectures[name] = [
            modules.at(module), heads.at(head), inputs.at(recipe(default)), parameters, macs, weights,
        ]  # fmt: skip
        print(f"{count + 1}/{len(names)} {name} {parameters:,} {macs:,}", file=sys.stderr)
    return {
        "timm": timm.__version__,
        "inputs": list(inputs),
        "licenses": list(licenses),
        "label_sets": list(label_sets),
        "heads": list(heads),
        "modules": list(modules),
        "architectures": architectures,
        "left_out": left_out,
    }


def dump(data: dict[str, Any]) -> str:
    """JSON with one architecture a line, so that a difference can be read."""
    lines = []
    for key, value in data.items():
        if isinstance(value, dict):
            rows = ",\n".join(f"{json.dumps(k)}:{json.dumps(v, separators=(',', ':'))}" for k, v in value.items())
            lines.append(f"{json.dumps(key)}:{{\n{rows}\n}}")
        else:
            lines.append(f"{json.dumps(key)}:{json.dumps(value, separators=(',', ':'))}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Write architectures.json from the installed timm.")
    parser.add_argument("--check", action="store_true", help="only say whether the file is what timm gives")
    parser.add_argument("--keep-figures", action="store_true", help="count only what the file does not have yet")
    args = parser.parse_args()
    torch.set_num_threads(1)
    known = json.loads(FILE.read_text("utf-8")) if args.check or args.keep_figures else None
    text = dump(collect(list_models(), known))
    if args.check:
        same = text == FILE.read_text("utf-8")
        print(f"architectures.json is {'' if same else 'not '}what timm {timm.__version__} gives")
        sys.exit(0 if same else 1)
    FILE.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
