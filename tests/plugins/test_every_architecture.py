"""Every architecture that our own plugins bring is run through the conformance kit by some test class."""

from __future__ import annotations

import re
from pathlib import Path

from zoo.registry import get_registry
from zoo.specs import Architecture


def test_each_has_its_class() -> None:
    """timm's thousand share one builder: a member of each family stands for them (tests/export/test_matrix.py)."""
    sources = "".join(p.read_text(encoding="utf-8") for p in Path(__file__).parent.glob("test_*.py"))
    tested = set(re.findall(r'^    name = "([^"]+)"', sources, flags=re.M))
    ours = {
        spec.name
        for plugin in get_registry().plugins
        if plugin.distribution in ("zoo-classic", "zoo-segment", "zoo-detect", "zoo-gan")
        for spec in plugin.specs
        if isinstance(spec, Architecture)
    }
    assert len(ours) >= 31
    assert not ours - tested
