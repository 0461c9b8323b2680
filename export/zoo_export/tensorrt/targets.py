"""What depends on the flavour and version of TensorRT: one small table, each row with its source."""

from __future__ import annotations

import re
from dataclasses import dataclass

from zoo.errors import ExportError, UnknownName
from zoo.runtime.tensorrt.api import TITLES

__all__ = ["FEATURES", "OPSETS", "PRECISIONS", "TITLES", "Feature", "Target", "parse_target"]

Version = tuple[int, ...]

PRECISIONS = ("fp32", "fp16", "bf16", "int8")
OLDEST: Version = (8, 5)
"""The oldest TensorRT with the name-based inputs and outputs that the runtime uses."""


@dataclass(frozen=True, kw_only=True)
class Feature:
    """Since when something works. None: never, as far as is known."""

    name: str
    tensorrt: Version | None
    rtx: Version | None
    source: str


_CHANGELOG = "onnx-tensorrt docs/Changelog.md"
_MEASURED = "TensorRT-RTX 1.7.1.116, parsed and built on a CPU"


def _operator(name: str, since: Version, source: str = _CHANGELOG) -> Feature:
    return Feature(name=name, tensorrt=since, rtx=(1, 0), source=source)


FEATURES: dict[str, Feature] = {
    f.name: f
    for f in (
        Feature(name="INT64", tensorrt=(9, 0), rtx=(1, 0), source=f"{_CHANGELOG}, 9.0 EA: until then cast to INT32"),
        Feature(name="BFLOAT16", tensorrt=(9, 0), rtx=(1, 0), source=f"{_CHANGELOG}, 9.0 GA"),
        Feature(name="FLOAT8E4M3FN", tensorrt=(9, 0), rtx=(1, 0), source=f"{_CHANGELOG}, 9.0 GA"),
        Feature(name="INT4", tensorrt=(10, 0), rtx=(1, 0), source=f"{_CHANGELOG}, 10.0 EA"),
        Feature(name="FLOAT4E2M1", tensorrt=(10, 8), rtx=(1, 0), source=f"{_CHANGELOG}, 10.8"),
        Feature(
            name="gridsample-5d", tensorrt=(11, 2), rtx=(1, 7), source=f"TensorRT 11.2.1 release notes; {_MEASURED}"
        ),
        Feature(name="nms", tensorrt=(8, 5), rtx=None, source=f"{_CHANGELOG}, 8.5; {_MEASURED}: no runner"),
        Feature(name="NonZero", tensorrt=(8, 5), rtx=None, source=f"{_CHANGELOG}, 8.5; {_MEASURED}: no plugin"),
        Feature(name="DeformConv", tensorrt=(10, 1), rtx=None, source=f"{_CHANGELOG}, 10.1; {_MEASURED}: no plugin"),
        Feature(
            name="DFT", tensorrt=(11, 2), rtx=None, source=f"TensorRT 11.2.1 release notes; {_MEASURED}: no plugin"
        ),
        Feature(
            name="RoiAlign", tensorrt=(8, 5), rtx=(1, 5), source=f"{_CHANGELOG}, 8.5; TensorRT-RTX 1.5 release notes"
        ),
        Feature(name="scatter-reduction", tensorrt=(10, 0), rtx=None, source=f"{_CHANGELOG}, 10.0 EA; {_MEASURED}"),
        _operator("GroupNormalization", (8, 6)),
        _operator("IsInf", (8, 6)),
        _operator("LayerNormalization", (8, 6)),
        _operator("Hardmax", (9, 2)),
        _operator("BlackmanWindow", (10, 4)),
        _operator("HammingWindow", (10, 4)),
        _operator("HannWindow", (10, 4)),
        _operator("STFT", (10, 5)),
        _operator("Attention", (10, 14)),
        _operator("RMSNormalization", (10, 15)),
        _operator("RotaryEmbedding", (10, 15)),
        _operator("TensorScatter", (10, 15)),
        _operator("CausalConvWithState", (11, 0), f"not in operators.md of 10.15; {_MEASURED}"),
        _operator("LinearAttention", (11, 0), f"not in operators.md of 10.15; {_MEASURED}"),
        _operator("Swish", (11, 0), f"not in operators.md of 10.15; {_MEASURED}"),
    )
}

OPSETS: tuple[tuple[Version, int, str], ...] = (
    ((8, 5), 17, "operators.md of 8.5 and 8.6"),
    ((9, 0), 19, "operators.md of 9.2"),
    ((10, 0), 20, "operators.md of 10.0"),
    ((10, 15), 24, "operators.md of 10.15"),
    ((11, 5), 25, "TensorRT 11.5 release notes"),
)
"""The newest opset that TensorRT documents, from each version on; the oldest is 9 throughout. TensorRT-RTX documents
none and its parser takes any without a word, so it is held to the newest row."""
OLDEST_OPSET = 9


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a graph is meant for. ``version`` () is the newest that this module knows."""

    flavour: str = "tensorrt"
    version: Version = ()
    precision: str = ""
    """The precision that was asked for, one of PRECISIONS; empty where none was."""

    @property
    def rtx(self) -> bool:
        return self.flavour == "tensorrt-rtx"

    def has(self, feature: str) -> bool:
        """Whether a row of FEATURES holds here; a name without a row holds everywhere."""
        row = FEATURES.get(feature)
        if row is None:
            return True
        since = row.rtx if self.rtx else row.tensorrt
        return since is not None and (not self.version or self.version >= since)

    def since(self, feature: str) -> str:
        """From which version on it works, as a person reads it: ``needs TensorRT 11.2``, ``not in TensorRT-RTX``."""
        row = FEATURES[feature]
        since = row.rtx if self.rtx else row.tensorrt
        title = TITLES[self.flavour]
        return f"not in {title}" if since is None else f"needs {title} {_text(since)}"

    @property
    def newest_opset(self) -> int:
        if self.rtx or not self.version:
            return OPSETS[-1][1]
        return max(opset for since, opset, _ in OPSETS if self.version >= since)

    def means(self, version: str) -> bool:
        """Whether an installed version is the one that is meant, as far as it is written: 10.3 means any 10.3.x."""
        return version.split(".")[: len(self.version)] == [str(part) for part in self.version]

    def __str__(self) -> str:
        return f"{TITLES[self.flavour]} {_text(self.version)}".rstrip()


def parse_target(text: str, precision: str = "") -> Target:
    """``tensorrt``, ``tensorrt:10.3``, ``tensorrt-rtx``, ``tensorrt-rtx:1.7``.

    Raises UnknownName for another flavour or precision, ExportError for a version that is none or is too old.
    """
    flavour, colon, version = text.strip().partition(":")
    if flavour not in TITLES:
        raise UnknownName("target", flavour, TITLES)
    if precision and precision not in PRECISIONS:
        raise UnknownName("precision", precision, PRECISIONS)
    if not colon:
        return Target(flavour=flavour, precision=precision)
    if not re.fullmatch(r"\d+(\.\d+){0,3}", version):
        raise ExportError(f"target '{text}': '{version}' is not a version: write it like {flavour}:{_example(flavour)}")
    numbers = tuple(int(part) for part in version.split("."))
    numbers += (0,) * (2 - len(numbers))  # "10" is the least that it can mean, 10.0
    if flavour == "tensorrt-rtx" and numbers >= OLDEST:
        raise ExportError(f"target '{text}': TensorRT-RTX counts from 1.0: did you mean tensorrt:{version}?")
    if flavour == "tensorrt" and numbers < OLDEST:
        cure = f"did you mean tensorrt-rtx:{version}?" if numbers < (2,) else "8.5 is the oldest that the zoo knows"
        raise ExportError(f"target '{text}': TensorRT {version} is not supported: {cure}")
    return Target(flavour=flavour, version=numbers, precision=precision)


def _example(flavour: str) -> str:
    return "1.7" if flavour == "tensorrt-rtx" else "10.3"


def _text(version: Version) -> str:
    return ".".join(str(part) for part in version)
