"""The label sets of timm's weights, in the order of their outputs."""

from __future__ import annotations

from collections import Counter

from timm.data import ImageNetInfo

__all__ = ["imagenet_1k", "imagenet_12k", "imagenet_21k_goog", "imagenet_21k_miil", "imagenet_22k", "imagenet_22k_ms"]


def _labels(subset: str) -> tuple[str, ...]:
    """WordNet's lemmas; where two classes share them (there are two cranes), with the synset's id behind."""
    info = ImageNetInfo(subset)
    ids, names = info.label_names(), info.label_descriptions()
    count = Counter(names)
    return tuple(name if count[name] == 1 else f"{name} ({id})" for id, name in zip(ids, names, strict=True))


def imagenet_1k() -> tuple[str, ...]:
    """The 1000 classes of ILSVRC 2012."""
    return _labels("imagenet-1k")


def imagenet_12k() -> tuple[str, ...]:
    return _labels("imagenet-12k")


def imagenet_21k_goog() -> tuple[str, ...]:
    return _labels("imagenet-21k-goog")


def imagenet_21k_miil() -> tuple[str, ...]:
    return _labels("imagenet-21k-miil")


def imagenet_22k() -> tuple[str, ...]:
    return _labels("imagenet-22k")


def imagenet_22k_ms() -> tuple[str, ...]:
    return _labels("imagenet-22k-ms")
