"""The policy of transfer learning: which layers learn when, and how fast. Lightning's Trainer does the rest.

The head learns first. Then the backbone's groups join from the back to the front (gradual unfreezing), each deeper
group with a smaller learning rate (discriminative learning rates): Howard and Ruder 2018, arXiv:1801.06146, section 3.
BatchNorm keeps the pretrained statistics throughout: a few photos make bad ones, and weights whose BatchNorm was
folded (mean 0, variance 1) lose everything when theirs are measured anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["Policy", "layer_groups", "learning_rate_factor", "set_trainable", "trained_norms"]

WARM_UP = 0.05
"""Share of the steps in which the learning rate rises from nothing."""
FLOOR = 0.01
"""Share of the learning rate that is left at the end of the cosine."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How many of the layer groups learn in each epoch. Group 0 is the head, the last is next to the image."""

    epochs: int
    groups: int
    gradual: bool
    """False trains everything from the first epoch, as weights that were never trained need it."""
    head_first: int = 0
    """Epochs in which the head learns alone, where it has not done so on cached features before."""

    def open_groups(self, epoch: int) -> int:
        """How many groups learn in ``epoch`` (from 0): one more of the backbone's at a time, all after 60 % of the run."""
        if not self.gradual:
            return self.groups
        if epoch < self.head_first:
            return 1
        backbone = self.groups - 1
        steps = max(1, math.ceil(0.6 * self.epochs) - self.head_first)
        return 1 + min(backbone, math.ceil((epoch + 1 - self.head_first) * backbone / steps))


def layer_groups(network: nn.Module, first: Sequence[nn.Parameter], count: int = 4) -> list[list[nn.Parameter]]:
    """The parameters in groups: ``first`` (the head's, or all that are new), then up to ``count`` of the rest from the
    back to the front.

    Depth is the order in which the modules were registered, which is the order of the forward pass in every
    network that is written from top to bottom. Containers are opened until there are enough blocks; the blocks
    are then cut into consecutive groups of about equal numbers of parameters, so that the groups that open first
    are the late, specific and cheap ones.
    """
    blocks = [network]
    while len(blocks) < 4 * count:
        # open the largest block that has children and no parameters of its own beside them
        able = [b for b in blocks if any(True for _ in b.children()) and (b is network or not _own(b))]
        if not able:
            break
        largest = max(able, key=lambda b: sum(p.numel() for p in b.parameters()))
        at = next(i for i, b in enumerate(blocks) if b is largest)
        blocks[at : at + 1] = list(largest.children())
    seen = {id(p) for p in first}
    parts: list[list[nn.Parameter]] = [[p for p in _own(network) if id(p) not in seen]]
    seen.update(id(p) for p in parts[0])
    for block in blocks:
        part = [p for p in block.parameters() if id(p) not in seen]
        seen.update(id(p) for p in part)
        if part:
            parts.append(part)
    if not parts[0]:
        del parts[0]
    elif len(parts) > 1:
        parts[:2] = [parts[0] + parts[1]]  # class tokens and position embeddings stand at the very front
    total = sum(p.numel() for part in parts for p in part)
    groups: list[list[nn.Parameter]] = []
    done, last = 0, -1
    for part in parts:
        # the group that the middle of the block falls into
        wanted = min(count - 1, int(count * (done + 0.5 * sum(p.numel() for p in part)) / max(1, total)))
        done += sum(p.numel() for p in part)
        if wanted == last:
            groups[-1].extend(part)
        else:
            groups.append(list(part))
        last = wanted
    return [list(first), *reversed(groups)]


def trained_norms(network: nn.Module, loaded: frozenset[str]) -> frozenset[str]:
    """Names of the BatchNorms whose statistics are among the names in ``loaded``."""
    return frozenset(
        name
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm) and f"{name}.running_mean" in loaded
    )


def _own(module: nn.Module) -> list[nn.Parameter]:
    return list(module.parameters(recurse=False))


def set_trainable(
    network: nn.Module,
    groups: Sequence[Sequence[nn.Parameter]],
    open_groups: int,
    *,
    keep_statistics: frozenset[str] = frozenset(),
) -> None:
    """Let the first ``open_groups`` groups learn and freeze the others; put the modules into the matching mode.

    A module all of whose parameters are frozen is in eval mode (no dropout, BatchNorm as it was); the BatchNorms named
    in ``keep_statistics`` stay in eval mode, though their weight and bias learn with their group.
    """
    for index, group in enumerate(groups):
        for parameter in group:
            parameter.requires_grad_(index < open_groups)
    network.train()
    for name, module in network.named_modules():
        learns = [p.requires_grad for p in module.parameters()]
        frozen = bool(learns) and not any(learns) and module is not network
        if frozen or name in keep_statistics:
            module.eval()


def learning_rate_factor(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to ``FLOOR``: the share of the learning rate at ``step`` of ``steps``."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    share = (step - warm) / max(1, steps - warm)
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
