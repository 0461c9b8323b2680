"""Run in a process of its own: import TensorRT's Python bindings and write down which public names they have.

``python dump.py MODULE [FOLDER …]`` prints JSON: ``version``; ``names``, dotted paths below the module; ``writable``, the
properties among them that can be assigned to; ``calls``, the arguments of what can be called, as ``[name, needed]`` for
each overload, read from the signature that pybind11 puts at the top of a docstring. No docstring is kept.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from types import ModuleType
from typing import Any

SIGNATURE = re.compile(r"^(?:\d+\. )?\w+\((?P<arguments>.*)\) -> ", re.MULTILINE)


def split(arguments: str) -> list[str]:
    """Split at the commas that are in no brackets: ``a: Dict[str, int], b: X = <X.Y: 0>`` is two arguments."""
    parts, depth = [""], 0
    for letter in arguments:
        depth += (letter in "([{<") - (letter in ")]}>")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def overloads(function: Any) -> list[list[tuple[str, bool]]]:
    """The arguments without ``self`` of each overload; none where the docstring does not tell."""
    found = []
    for match in SIGNATURE.finditer(getattr(function, "__doc__", None) or ""):
        arguments = [part.split(":")[0].split("=")[0].strip() for part in split(match["arguments"])]
        needed = ["=" not in part for part in split(match["arguments"])]
        pairs = list(zip(arguments, needed, strict=True))
        found.append(pairs[1:] if arguments[:1] == ["self"] else pairs)
    return found


def walk(thing: Any, path: str, surface: dict[str, Any]) -> None:
    """Add the public names of a module or class, and those of the classes in it."""
    for name in dir(thing):
        if name.startswith("_") and name != "__version__":
            continue
        value = getattr(thing, name)
        if isinstance(value, ModuleType):
            continue
        below = f"{path}.{name}" if path else name
        surface["names"].append(below)
        if isinstance(value, property):
            if value.fset is not None:
                surface["writable"].append(below)
        elif isinstance(value, type):
            surface["calls"][below] = overloads(value.__init__)
            if not path or value.__qualname__.startswith(f"{thing.__qualname__}."):  # a nested class, not a reference
                walk(value, below, surface)
        elif callable(value):
            surface["calls"][below] = overloads(value)


def main() -> None:
    name, *folders = sys.argv[1:]
    sys.path[:0] = folders
    module = importlib.import_module(name)
    surface: dict[str, Any] = {"version": module.__version__, "names": [], "writable": [], "calls": {}}
    walk(module, "", surface)
    surface["calls"] = {path: found for path, found in surface["calls"].items() if found}
    json.dump(surface, sys.stdout)


if __name__ == "__main__":
    main()
