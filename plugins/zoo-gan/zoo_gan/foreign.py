"""Restoration networks that a file of weights describes: spandrel reads from the tensors which network they are of.

spandrel (https://github.com/chaiNNer-org/spandrel, MIT) knows the layouts of some forty families: Real-ESRGAN and its
compact kin, SwinIR, HAT, DAT, NAFNet, DnCNN, SCUNet, LaMa, …. It is given tensors alone: no file is opened here, and no
code from one is run.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from spandrel import ImageModelDescriptor, MaskedImageModelDescriptor, ModelLoader, UnsupportedModelError
from torch import Tensor, nn

from zoo.errors import CheckpointError, ZooError

from .restoring import Restorer, without_prefix

__all__ = ["Foreign", "Inpainter", "Whole", "build"]

OWN = "generator.network."


class Whole(nn.Module):
    """(N, C, H, W) in 0..1 to (N, C', H * scale, W * scale), H and W multiples of what the network asks for."""

    def __init__(self, network: nn.Module, family: str, multiple: int, minimum: int) -> None:
        super().__init__()
        self.network = network
        self.family, self.multiple, self.minimum = family, multiple, minimum

    def forward(self, x: Tensor) -> Tensor:
        _need_size(x, self.family, self.multiple, self.minimum)
        made: Tensor = self.network(x)
        return made


class Inpainter(Whole):
    """(N, 4, H, W), the last channel 1 where the image is known and 0 in the holes, to (N, 3, H, W); known pixels stay."""

    def forward(self, x: Tensor) -> Tensor:
        _need_size(x, self.family, self.multiple, self.minimum)
        image, known = x[:, :3], (x[:, 3:] >= 0.5).to(x.dtype)
        made: Tensor = self.network(image, 1 - known)
        return known * image + (1 - known) * made


class Foreign(Restorer):
    """What was read from a file, to be run, exported, or trained on, on pairs."""

    def adopt(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if any(key.startswith(OWN) for key in tensors):
            return dict(tensors)
        descriptor = _describe(tensors)  # it renames what older layouts call otherwise
        return {OWN + key: value for key, value in descriptor.model.state_dict().items()}


def build(*, num_classes: int = 0, in_channels: int = 3, state: Mapping[str, Tensor] | None = None) -> Foreign:
    """The network that ``state`` is of, with the state's weights: tensors as a file has them, or a checkpoint's own.

    Raises CheckpointError where no state is given, where spandrel knows no network of such tensors, and where that
    network cannot stand here: it takes one size only, or other channels than ``in_channels``.
    """
    if state is None:
        raise CheckpointError("this network is told by its weights: give a file of them with --weights")
    own = {key.removeprefix(OWN): value for key, value in state.items() if key.startswith(OWN)}
    descriptor = _describe(own or state)
    family, need = descriptor.architecture.name, descriptor.size_requirements
    if need.square:
        raise CheckpointError(f"{family} takes square images of one size alone: it cannot restore images of any size")
    holes = isinstance(descriptor, MaskedImageModelDescriptor)
    channels = descriptor.input_channels + (1 if holes else 0)
    if channels != in_channels:
        raise CheckpointError(
            f"this {family} takes {channels} channels, and the input has {in_channels}: give channels {channels}"
        )
    module = Inpainter if holes else Whole
    generator = module(descriptor.model, family, need.multiple_of, need.minimum)
    network = Foreign(generator, scale=descriptor.scale, multiple=need.multiple_of)
    if holes:
        network.decode["holes"] = True
    # some families come with parameters frozen: training is for whoever asks for it to decide
    return network.requires_grad_(True).train()


def _describe(state: Mapping[str, Tensor]) -> ImageModelDescriptor[nn.Module] | MaskedImageModelDescriptor[nn.Module]:
    tensors = without_prefix(state)
    try:
        with torch.random.fork_rng(devices=[]):  # what is built here gets its weights from the state
            return ModelLoader(device="cpu").load_from_state_dict(tensors)
    except UnsupportedModelError:
        some = ", ".join(list(tensors)[:3]) or "no tensor"
        raise CheckpointError(f"spandrel knows no restoration network of these tensors ({some}, …)") from None
    except (RuntimeError, KeyError, ValueError, AssertionError, IndexError) as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"these tensors look like a network that spandrel knows, but do not fit it: {line}"
        ) from None


def _need_size(x: Tensor, family: str, multiple: int, minimum: int) -> None:
    if torch.compiler.is_compiling():
        return  # a graph's sides are symbols: who runs the graph keeps the rule
    height, width = x.shape[2:]
    least = max(minimum, multiple)
    up = [max(-(-side // multiple) * multiple, least) for side in (height, width)]
    if [height, width] != up:
        raise ZooError(
            f"input is {height}x{width}; {family} takes multiples of {multiple} from {least} on: pad to {up[0]}x{up[1]}"
        )
