"""The documentation keeps up with the code: a hook, an argument or a record field that is not told of fails here."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import pytest

from zoo import hookspecs, specs

ROOT = Path(__file__).resolve().parents[2]
CONTRACT = (ROOT / "docs" / "contract.md").read_text(encoding="utf-8")
HOOKS = [f for name, f in vars(hookspecs).items() if name.startswith("zoo_")]
RECORDS = [
    r for r in vars(specs).values() if inspect.isclass(r) and dataclasses.is_dataclass(r) and r is not specs.Spec
]


@pytest.mark.parametrize("hook", HOOKS, ids=lambda h: h.__name__)
def test_every_hook_and_argument_is_documented(hook):
    arguments = ", ".join(inspect.signature(hook).parameters)
    heading = f"### `{hook.__name__}({arguments})`"
    assert heading in CONTRACT
    section = CONTRACT.split(heading)[1].split("\n##")[0]
    for argument in inspect.signature(hook).parameters:
        assert f"`{argument}`" in section


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: r.__name__)
def test_every_record_and_field_is_documented(record):
    assert f"`{record.__name__}`" in CONTRACT
    own = {f.name for f in dataclasses.fields(record)} - {"name", "summary", "load"}
    missing = [name for name in own if f"`{name}`" not in CONTRACT]
    assert not missing


def test_links_between_pages_lead_somewhere():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("**/*.md")]
    dead = []
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if not target.startswith("http") and not (page.parent / target).exists():
                dead.append(f"{page.relative_to(ROOT)}: {target}")
    assert not dead


def test_commands_in_the_documentation_exist():
    from zoo.registry import get_registry

    known = set(get_registry().names(specs.Command))
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        used = set(re.findall(r"^\$? ?zoo ([a-z]+)", page.read_text(encoding="utf-8"), flags=re.M))
        assert used <= known, f"{page.name}: {used - known}"
