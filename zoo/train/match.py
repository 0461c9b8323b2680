"""Players that train each other, as Lightning's Trainer is given them: turns, averaged generator, and the record of it."""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ZooError
from .adversarial import ImagePool
from .engine import Average, Record, write_metrics
from .players import Batch, Players, Rules

__all__ = ["Match", "Rounds", "Validation"]

LOOK_EVERY = 20
"""Steps between two looks at whether all losses are numbers, and at the gradients' size."""
WARM_UP = 20
"""Steps over which a falling learning rate first rises."""


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What an epoch's generator is worth."""

    metric: float
    figures: Mapping[str, float] = field(default_factory=dict)
    warning: str = ""


class Match(L.LightningModule):  # type: ignore[misc]
    """Players taking turns over the batches of an epoch. Deterministic in (seed, epoch)."""

    def __init__(
        self,
        network: Players,
        *,
        rules: Rules,
        lr: float | None,
        steps: int,
        ema: float,
        seed: int,
        channels_last: bool,
        validate: Callable[[nn.Module], Validation],
    ) -> None:
        """``lr``: the generator's, which scales the others' too; None: the network's own. ``validate`` is given the
        generator, in eval mode."""
        super().__init__()
        self.automatic_optimization = False
        self.network, self.rules = network, rules
        self.average = Average(network.generator, ema) if ema else None
        self._lr, self._steps, self._seed, self._channels_last = lr, steps, seed, channels_last
        self._validate = validate
        self.register_buffer("turns", torch.zeros((), dtype=torch.int64))
        self.figures: dict[str, float] = {}
        self.warning = ""

    @property
    def best_generator(self) -> nn.Module:
        """What is validated and kept: the averaged weights where averaging is on."""
        return self.network.generator if self.average is None else self.average.network

    def configure_optimizers(self) -> list[Any]:
        settings = {player: self.network.adam(player, self.rules.loss) for player in self.network.players}
        base = float(settings[self._leader]["lr"])
        factor = 1.0 if self._lr is None else self._lr / base
        found = []
        for player in self.network.players:
            own = dict(settings[player])
            own["lr"] = float(own["lr"]) * factor
            parameters = itertools.chain.from_iterable(p.parameters() for p in self.network.parts(player))
            found.append(torch.optim.Adam(list(parameters), **own))
        self._rates = [float(o.param_groups[0]["lr"]) for o in found]
        return found

    @property
    def _leader(self) -> str:
        """The player that moves the exported generator."""
        return next(p for p in self.network.players if p.startswith("generator"))

    def _rate(self) -> float:
        """Share of the learning rates that this step moves with."""
        step, kind = int(self.turns), self.network.schedule
        if kind == "constant":
            return 1.0
        done = min(1.0, step / max(1, self._steps))
        if kind == "linear":
            return min(1.0, max(0.0, 2 * (1 - done)))
        return min(1.0, (step + 1) / WARM_UP) * (0.5 + 0.5 * float(np.cos(np.pi * done)))

    # -- what a resumed run needs beside the weights -------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["pools"] = {name: pool.images for name, pool in self._pools()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for name, pool in self._pools():
            pool.images = checkpoint["pools"][name]

    def _pools(self) -> list[tuple[str, ImagePool]]:
        return [(name, part) for name, part in self.network.named_modules() if isinstance(part, ImagePool)]

    # -- training ----------------------------------------------------------------------------------------------

    def on_train_epoch_start(self) -> None:
        torch.manual_seed(hash((self._seed, self.current_epoch)) & 0x7FFFFFFF)
        self.network.train()
        self._sums: dict[str, Any] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)
        self._images, self._started = 0, time.perf_counter()

    def training_step(self, batch: dict[str, Tensor], index: int) -> None:
        images = batch["input"]
        if self._channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        now = Batch(input=images, target=batch.get("target"), labels=batch.get("labels"))
        self._images += len(images)
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        rate, shared, step = self._rate(), dict[str, Any](), int(self.turns)
        look = index % LOOK_EVERY == 0
        for player, optimizer, base in zip(self.network.players, optimizers, self._rates, strict=True):
            if not self.network.takes_turn(player, step, self.rules):
                continue
            for group in optimizer.param_groups:
                group["lr"] = base * rate
            turn = self.network.play(player, now, self.rules, shared)
            total = torch.stack([loss.float() for loss in turn.losses.values()]).sum()
            optimizer.zero_grad(set_to_none=True)
            self.manual_backward(total)
            for name, value in (*turn.losses.items(), *turn.figures.items()):
                self._note(f"{player} {name}", value.detach())
            self._note(f"{player} loss", total.detach())
            if look:
                self._note(f"{player} gradient", self._gradient(player))
                self._check_finite()
            optimizer.step()
        self.turns += 1
        if self.average is not None:
            self.average.update(self.network.generator)

    def _note(self, name: str, value: Tensor) -> None:
        self._sums[name] = self._sums[name] + value.float().mean()
        self._counts[name] += 1

    def _gradient(self, player: str) -> Tensor:
        gradients = [p.grad for part in self.network.parts(player) for p in part.parameters() if p.grad is not None]
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))) if gradients else torch.zeros(())

    def _check_finite(self) -> None:
        broken = [name for name, value in self._sums.items() if not bool(torch.isfinite(torch.as_tensor(value)))]
        if broken:
            raise ZooError(
                f"'{broken[0]}' became NaN or infinite in epoch {self.current_epoch + 1}: the checkpoint of the epoch before is kept; "
                "lower --lr, choose another --loss, or use --precision 32-true"
            )

    def on_train_batch_end(self, outputs: Any, batch: Any, index: int) -> None:
        if index + 1 == self.trainer.num_training_batches:
            self._check_finite()
            seconds = time.perf_counter() - self._started
            means = {name: float(value) / self._counts[name] for name, value in self._sums.items()}
            self.figures = {
                "train_loss": means[f"{self._leader} loss"],
                "seconds": seconds,
                "images_per_s": self._images / seconds,
                **{name.replace(" ", "_"): value for name, value in means.items()},
            }

    # -- validation --------------------------------------------------------------------------------------------

    def validation_step(self, batch: Any, index: int) -> None:
        generator = self.best_generator.eval()
        found = self._validate(generator)
        self.warning = found.warning
        self.figures.update(val_metric=found.metric, **found.figures)

    def on_validation_model_eval(self) -> None:
        self.eval()

    def on_validation_model_train(self) -> None:
        self.network.train()


class Rounds(Record):
    """After each epoch: the row, the best generator with its trainers, samples to look at, the resumable state."""

    def __init__(
        self, *, lower: bool, said: Callable[[float], str], show: Callable[[Match, int], None], **rest: Any
    ) -> None:
        """``lower``: whether a smaller metric is better; ``said`` prints it; ``show(match, epoch)`` draws samples."""
        super().__init__(**rest)
        self._lower, self._said, self._show = lower, said, show

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._bar.close()
        figures = dict(pl_module.figures)
        metric = float(figures.pop("val_metric"))
        row: dict[str, Any] = {"phase": self.phase, "epoch": trainer.current_epoch + 1}
        row["train_loss"] = round(figures.pop("train_loss"), 6)
        row["val_metric"] = float(f"{metric:.6g}")
        row["lr"] = float(f"{trainer.optimizers[0].param_groups[0]['lr']:.6g}")
        row["images_per_s"], row["seconds"] = (round(figures.pop(k), 2) for k in ("images_per_s", "seconds"))
        row |= {name: float(f"{value:.6g}") for name, value in figures.items()}
        self.rows.append(row)
        now = (-metric if self._lower else metric, 0.0)
        if self.best is None or now > self.best:
            self.best, self.waited = now, 0
            self._keep(pl_module, row)
        else:
            self.waited += 1
            if self._patience and self.waited >= self._patience:
                self.stopped = f"no better for {self.waited} epochs"
                trainer.should_stop = True
        self._show(pl_module, row["epoch"])
        losses = ", ".join(
            f"{p} {figures[f'{p}_loss']:.4g}" for p in pl_module.network.players if f"{p}_loss" in figures
        )
        told = ", ".join(f"{100 * v:.0f} % told apart" for k, v in figures.items() if k.endswith("_accuracy"))
        self._say(
            f"{row['epoch']}/{trainer.max_epochs}: {losses}{', ' + told if told else ''}; "
            f"{self.metric_name} {self._said(metric)}, {row['images_per_s']:.0f} images/s"
            + (f"; stopped: {self.stopped}" if self.stopped else "")
        )
        if pl_module.warning:
            self._say(f"warning: {pl_module.warning}")
        if self._csv is not None:
            write_metrics(self._csv, self.rows)
        if self._state is not None:
            trainer.save_checkpoint(self._state)
