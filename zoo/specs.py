"""The nouns a plugin can register: frozen records that import nothing until their ``load`` path is resolved."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Any, ClassVar

from .errors import MissingPart, PluginError

__all__ = [
    "Architecture",
    "Command",
    "DatasetFormat",
    "Exporter",
    "ImageInput",
    "Precision",
    "Runtime",
    "Spec",
    "Task",
    "Weights",
]

RESIZES = ("shortest", "squash", "letterbox", "crop")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
COLORS: Mapping[str, int | None] = {"RGB": 3, "BGR": 3, "L": 1, "RGBA": 4, "bands": None, "latent": None}
"""Channel orders, and how many channels each has; ``bands`` and ``latent`` have any number."""
FREE = ("bands", "latent")
PEAKS: Mapping[str, float] = {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0}
"""Types of pixels, and the value that counts as 1 in each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageInput:
    """The one declarative record of preprocessing: from any image to a float32 tensor (C, H, W).

    ``value = (pixel / peak - mean) / std``, after resizing by ``resize``:

    - ``shortest``: the short side becomes ``size / crop``, then the centre ``height x width`` is cut out;
    - ``squash``: both sides become ``size / crop`` without regard to the aspect ratio, then the centre is cut out;
    - ``letterbox``: the whole image fits inside, centred, and the rest is painted with ``fill``;
    - ``crop``: nothing is resized: the centre ``height x width`` is cut out, and what a smaller image lacks is painted
      with ``fill``. For networks that take images at their own pixels, of which ``height x width`` is then a sample.

    ``crop`` is the share of the resized image that is kept (timm calls it ``crop_pct``). ``color`` names the
    channel order the network expects; ``bands`` means ``channels`` bands of no agreed colour (arrays and TIFF), and
    ``latent`` that there is no image: ``channels`` values drawn from N(0, 1), kept as one float32 pixel, the last of
    which say the class where a network is told one. ``mean``, ``std`` and ``fill`` have one value a channel, in that order.

    ``pixel`` is the type in which pixels are kept until they are normalised: ``uint8`` (peak 255; 16-bit images lose
    their lower half), ``uint16`` (peak 65535) or ``float32`` (peak 1: measurements in a unit of their own).
    """

    height: int
    width: int
    channels: int = 3
    color: str = "RGB"
    resize: str = "shortest"
    crop: float = 1.0
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    fill: tuple[float, ...] = ()
    """Pixel values; empty means ``mean * peak``."""
    pixel: str = "uint8"

    def __post_init__(self) -> None:
        broken = self._broken_rule()
        if broken:
            raise ValueError(f"ImageInput: {broken}")

    def _broken_rule(self) -> str:
        channels = self.channels
        if not isinstance(self.height, int) or not isinstance(self.width, int):
            return "height and width are whole numbers"
        if not (1 <= self.height <= 16384 and 1 <= self.width <= 16384):
            return "height and width lie in 1..16384"
        if not isinstance(channels, int) or not 1 <= channels <= 4096:
            return "channels lies in 1..4096"
        if self.resize not in RESIZES:
            return f"resize is one of {', '.join(RESIZES)}"
        if self.interpolation not in INTERPOLATIONS:
            return f"interpolation is one of {', '.join(INTERPOLATIONS)}"
        if self.color not in COLORS:
            return f"color is one of {', '.join(COLORS)}"
        if COLORS[self.color] not in (None, channels):
            return f"color {self.color} has {COLORS[self.color]} channels, not {channels}"
        if not 0.1 <= self.crop <= 1.0:
            return "crop lies in 0.1..1"
        if len(self.mean) != channels:
            return f"mean has {len(self.mean)} values for {channels} channels"
        if len(self.std) != channels:
            return f"std has {len(self.std)} values for {channels} channels"
        if not all(abs(m) < 1e6 for m in self.mean):
            return "mean is finite"
        if not all(1e-6 < s < 1e6 for s in self.std):
            return "std is positive and finite"
        if len(self.fill) not in (0, channels):
            return "fill has one value a channel, or none"
        if self.pixel not in PEAKS:
            return f"pixel is one of {', '.join(PEAKS)}"
        if self.resize == "crop" and self.crop != 1.0:
            return "resize crop keeps the pixels as they are: crop is 1"
        if self.color == "latent" and (self.height, self.width, self.resize, self.pixel) != (1, 1, "crop", "float32"):
            return "a latent is one float32 pixel: height 1, width 1, resize crop, pixel float32"
        return ""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one preprocessed image."""
        return (self.channels, self.height, self.width)

    @property
    def peak(self) -> float:
        """The pixel value that counts as 1."""
        return PEAKS[self.pixel]

    @property
    def source_channels(self) -> int:
        """Channels of an image to make for this input: photos are RGB whatever the network makes of them."""
        return self.channels if self.color in FREE else 3

    def with_size(self, height: int, width: int | None = None) -> ImageInput:
        return replace(self, height=height, width=height if width is None else width)

    def with_channels(self, channels: int) -> ImageInput:
        """The same recipe for another channel count: mean and std become their average over the old channels."""
        if channels == self.channels:
            return self
        if self.color == "latent":
            return ImageInput.latent(channels)
        color = {1: "L", 3: "RGB", 4: "RGBA"}.get(channels, "bands")
        mean = sum(self.mean) / len(self.mean)
        std = sum(self.std) / len(self.std)
        return replace(self, channels=channels, color=color, mean=(mean,) * channels, std=(std,) * channels, fill=())

    @classmethod
    def latent(cls, channels: int) -> ImageInput:
        """The input of a network that takes ``channels`` values drawn from N(0, 1) in the place of an image."""
        return cls(
            height=1, width=1, channels=channels, color="latent", resize="crop", pixel="float32",
            mean=(0.0,) * channels, std=(1.0,) * channels,
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ImageInput:
        """The inverse of :meth:`to_dict`. Raises ValueError on unknown keys, missing keys and impossible values."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"ImageInput: {error}") from None


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """Trained weights of an architecture: where they are, what they expect, and under which terms."""

    name: str
    uri: str
    """What ``zoo_open_weights`` turns into a file: ``https://…``, or a plugin's own scheme."""
    input: ImageInput | None = None
    """The weights' own preprocessing; None means the architecture's."""
    num_classes: int = 1000
    labels: str = ""
    """Name of a label set (``imagenet-1k``) or a dotted path to a callable that returns the labels."""
    license: str = ""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Spec:
    """A name, one line of summary, and a dotted path ``package.module:attribute`` that is imported when it is used.

    Specs are compared by identity: what dataclasses would write for equality is never asked for, and writing it for
    each record is felt in the time that ``zoo --help`` takes.
    """

    kind: ClassVar[str] = "spec"

    name: str
    summary: str
    load: str

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self.name!r}, load={self.load!r})"

    def resolve(self) -> Any:
        """Import what ``load`` names.

        Raises MissingPart where a package it needs is absent, PluginError where the path itself is wrong.
        """
        return resolve(self.load, f"{self.kind} '{self.name}'")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Architecture(Spec):
    """A network. ``load`` resolves to ``build(*, num_classes, in_channels, **options) -> torch.nn.Module``."""

    kind: ClassVar[str] = "architecture"

    task: str
    input: ImageInput
    head: str
    """Dotted name of the module that maps features to classes; it is what transfer learning replaces. Several,
    comma-separated, where a network averages more than one (distilled transformers do)."""
    backbone: str = ""
    """Dotted name of the submodule that an image classifier's weights fit; empty where there is none."""
    weights: tuple[Weights, ...] = ()
    """The first is what ``pretrained`` means."""
    makes: ImageInput | None = None
    """Of a network that makes images from latents: how the images that it learns from are brought to what it makes.
    A user's size and channels are then those of the images; ``input`` describes the latents."""
    classes: bool = True
    """Whether it tells classes, or is told them. Without, ``num_classes`` is 0 and there are no labels."""
    license: str = ""
    paper: str = ""
    aliases: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments that ``build`` is called with; a user's own options are laid over them."""
    decode: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the task's numpy half that follow from how the network is made (see :class:`zoo.tasks.detect.Detect`);
    what was chosen on a validation set is laid over them."""
    parameters: int = 0
    """Trainable and fixed weights as built for the first weights' classes (10 or 1000 without any); 0: not known."""
    macs: int = 0
    """Multiply-accumulates for one image at ``input``'s size; 0: not known."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Task(Spec):
    """What the outputs mean. ``load`` resolves to the numpy half (see :class:`zoo.tasks.TaskHalf`)."""

    kind: ClassVar[str] = "task"

    outputs: tuple[str, ...]
    """Names of the deployed graph's outputs, in order."""
    tolerances: Mapping[str, Mapping[str, float]]
    """Per precision: the bounds of the parity gates (see :mod:`zoo.parity`)."""
    trainer: str
    """Dotted path of the torch half: loss, targets, the deployable wrapper."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class DatasetFormat(Spec):
    """``load`` resolves to an object with ``sniff``, ``splits`` and ``open`` (see :class:`zoo.data.Format`)."""

    kind: ClassVar[str] = "dataset format"

    tasks: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Exporter(Spec):
    """``load`` resolves to ``export(source: Artifact, out: Path, options: Mapping) -> Artifact``."""

    kind: ClassVar[str] = "exporter"

    reads: str
    writes: str
    requires: tuple[str, ...] = ()
    """Importable module names; one that is absent makes the exporter unavailable, with the reason."""
    install: str = ""
    """The line that installs what is missing."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Precision(Spec):
    """``load`` resolves to ``convert(artifact: Artifact, out: Path, calibration) -> Artifact``."""

    kind: ClassVar[str] = "precision"

    precision: str
    reads: str
    target: str = ""
    """The artefact format that the result is meant for; empty: any that is made from ``reads``."""
    requires: tuple[str, ...] = ()
    install: str = ""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Runtime(Spec):
    """``load`` resolves to ``open(model: Path | bytes, **options) -> Session`` (see :mod:`zoo.runtime`)."""

    kind: ClassVar[str] = "runtime"

    reads: tuple[str, ...]
    """The artefact formats that it opens."""
    probe: str = ""
    """Dotted path of a ``() -> str``: why it cannot run on this machine though its packages are there, empty where it
    can (a driver, a GPU). It is asked before an artefact is opened."""
    requires: tuple[str, ...] = ()
    priority: int = 0
    """Among the runtimes that can open an artefact, the highest is tried first."""
    install: str = ""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Command(Spec):
    """``load`` resolves to a ``click.Command``; ``summary`` is its short help, so that help imports no command."""

    kind: ClassVar[str] = "command"

    group: str = "more"
    """Heading under which ``zoo --help`` lists it."""


def resolve(path: str, what: str, install: str = "") -> Any:
    """Import ``package.module:attribute``. ``what`` names the owner in errors."""
    module, _, attribute = path.partition(":")
    if not module or not attribute:
        raise PluginError(f"{what}: load is '{path}', not of the form package.module:attribute")
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        absent = (error.name or "").partition(".")[0]
        if absent == module.partition(".")[0]:
            raise PluginError(f"{what}: there is no module {error.name} (load='{path}')") from error
        raise MissingPart(f"{absent}, which {what} needs,", install or install_line(absent)) from error
    except Exception as error:  # whatever a stranger's module does at import
        raise PluginError(f"{what}: importing {module} failed: {type(error).__name__}: {error}") from error
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise PluginError(f"{what}: {module} has no attribute '{attribute}'") from None
    return found


_EXTRAS = {
    "train": ("torch", "torchvision", "lightning", "safetensors", "matplotlib", "torchmetrics"),
    "export": ("onnx", "onnxscript", "onnxslim", "zoo_export"),
    "edge": ("onnxruntime",),
    "tiff": ("tifffile",),
}


def install_line(package: str) -> str:
    """The ``pip install`` line that brings ``package``."""
    for extra, packages in _EXTRAS.items():
        if package in packages:
            return f"pip install 'edgezoo[{extra}]'"
    return f"pip install {package.replace('_', '-')}"


def absent(spec: Exporter | Precision | Runtime) -> list[str]:
    """The required modules of a spec that cannot be imported here (looked up, not imported)."""
    return [name for name in spec.requires if not _importable(name)]


@cache
def _importable(name: str) -> bool:
    import importlib.util  # only where a spec has requirements: `zoo --help` does without

    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def missing_part(spec: Exporter | Precision | Runtime) -> MissingPart:
    """The error that says which package a spec lacks, and the line that installs it."""
    package = absent(spec)[0]
    return MissingPart(f"{package}, which {spec.kind} '{spec.name}' needs,", spec.install or install_line(package))
