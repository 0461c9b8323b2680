"""What Lightning's Trainer is given: the module of a training phase, averaged weights, and the record of its epochs."""

from __future__ import annotations

import contextlib
import copy
import csv
import io
import logging
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor, nn

from ..errors import ZooError
from ..files import beside, write_text
from ..inputs import Frame
from ..tasks import Meter, TaskHalf
from .half import Half
from .transfer import Policy, learning_rate_factor, set_trainable

__all__ = ["AtomicIO", "Average", "Fitting", "Progress", "Recipe", "Record", "fit", "quiet", "write_metrics"]


Progress = Callable[[str, int], contextlib.AbstractContextManager[Callable[[int], None]]]
"""(label, total) to a context that gives a function of how many are done."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the weights are moved."""

    lr: float
    """Learning rate of the head; group g of the backbone has ``lr * lr_decay ** g``."""
    lr_decay: float = 1.0
    weight_decay: float = 0.05
    smoothing: float = 0.0
    ema: float = 0.0
    """Decay of the averaged weights, 0 for none."""
    loss: str = ""
    keep_statistics: frozenset[str] = frozenset()
    """Names of the BatchNorms that keep their statistics: those that came with the weights."""
    channels_last: bool = False
    seed: int = 0


class Average(nn.Module):
    """An exponential moving average of a network: what is validated and kept where averaging is on.

    The decay rises from 0.1 as (1 + t) / (10 + t), so that a short run does not end on its random start.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self.decay = decay
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._pairs: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """One step of the average towards ``network``, the same one each time, on the same device."""
        if not self._pairs:
            self._pairs = list(zip(self.network.state_dict().values(), network.state_dict().values(), strict=True))
        steps = int(self.get_buffer("steps").add_(1))
        decay = min(self.decay, (1 + steps) / (10 + steps))
        floats = [pair for pair in self._pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_([m for m, _ in floats], [o for _, o in floats], 1 - decay)
        for mine, other in self._pairs:
            if not mine.is_floating_point():
                mine.copy_(other)


class Fitting(L.LightningModule):  # type: ignore[misc]
    """One phase: a network, which of its groups learn when, and the loss. Deterministic in (seed, epoch)."""

    def __init__(
        self,
        network: nn.Module,
        *,
        half: Half,
        task: TaskHalf,
        groups: list[list[nn.Parameter]],
        policy: Policy,
        recipe: Recipe,
        steps: int,
        labels: Sequence[str],
        originals: Callable[[list[int]], tuple[list[Any], list[Frame]]],
        weight: Tensor | None = None,
        mixer: nn.Module | None = None,
    ) -> None:
        """``originals``: the targets of validation images in their own pixels, and where each image lies in its input."""
        super().__init__()
        self.network = network
        self.average = Average(network, recipe.ema) if recipe.ema else None
        self._half, self._task, self._groups, self._policy, self.recipe = half, task, groups, policy, recipe
        self._steps, self._labels, self._originals = steps, tuple(labels), originals
        self._mixer = mixer
        self.lr = recipe.lr
        self.register_buffer("class_weight", weight, persistent=False)
        self.images = 0
        self._loss_sum: Any = 0.0
        self._meter: Meter | None = None
        self._val: Any = None
        self.figures: dict[str, float] = {}
        """Of the epoch just ended: ``train_loss``, ``val_loss``, ``val_metric``, ``images_per_s``, ``seconds``."""

    @property
    def best_network(self) -> nn.Module:
        """What is validated: the averaged weights where averaging is on."""
        return self.network if self.average is None else self.average.network

    def configure_optimizers(self) -> Any:
        sets = []
        for depth, group in enumerate(self._groups):
            rate = self.lr * self.recipe.lr_decay**depth
            # biases and normalisation are not decayed
            for decayed in (True, False):
                parameters = [p for p in group if (p.ndim > 1) == decayed]
                if parameters:
                    sets.append(
                        {"params": parameters, "lr": rate, "weight_decay": self.recipe.weight_decay if decayed else 0.0}
                    )
        optimizer = torch.optim.AdamW(sets, lr=self.lr, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, self._steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _layout(self, x: Tensor) -> Tensor:
        return x.contiguous(
            memory_format=torch.channels_last if self.recipe.channels_last and x.ndim == 4 else torch.contiguous_format
        )

    # -- training ----------------------------------------------------------------------------------------------

    def on_train_epoch_start(self) -> None:
        # what dropout and mixup draw depends on the epoch, not on what was drawn before it: a resumed run draws the same
        torch.manual_seed(hash((self.recipe.seed, self.current_epoch, self.global_rank)) & 0x7FFFFFFF)
        np.random.seed((self.recipe.seed + 7919 * self.current_epoch) & 0x7FFFFFFF)
        self._apply_policy()
        self.images, self._loss_sum, self._batches = 0, 0.0, 0
        self._started = time.perf_counter()

    def _apply_policy(self) -> None:
        open_groups = self._policy.open_groups(min(self.current_epoch, max(0, self._policy.epochs - 1)))
        set_trainable(self.network, self._groups, open_groups, keep_statistics=self.recipe.keep_statistics)

    def training_step(self, batch: tuple[Tensor, Any], index: int) -> Tensor:
        x, target = batch
        self.images += len(x)
        if self._mixer is not None:
            x, target = self._mixer(x, target)
        raw = self.network(self._layout(x))
        loss = self._half.loss(
            self.network,
            raw,
            target,
            name=self.recipe.loss,
            weight=self.class_weight,
            smoothing=self.recipe.smoothing,
        )
        self._loss_sum = self._loss_sum + loss.detach()
        self._batches += 1
        if index % 50 == 49:
            self._check_finite()
        return loss

    def _check_finite(self) -> None:
        if not bool(torch.isfinite(torch.as_tensor(self._loss_sum))):
            raise ZooError(
                f"the loss became NaN or infinite in epoch {self.current_epoch + 1}: lower --lr (now {self.lr:.3g}), or use --precision 32-true"
            )

    def on_train_batch_end(self, outputs: Any, batch: Any, index: int) -> None:
        if self.average is not None:
            self.average.update(self.network)
        if index + 1 == self.trainer.num_training_batches:
            self._check_finite()
            self.figures = {
                "train_loss": float(self._loss_sum) / self._batches,
                "seconds": time.perf_counter() - self._started,
            }
            self.figures["images_per_s"] = self.images * self.trainer.world_size / self.figures["seconds"]

    # -- validation --------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self.best_network.eval()
        self._val = torch.zeros(2, dtype=torch.float64)
        self._meter = self._task.meter(self._labels)

    def validation_step(self, batch: tuple[Tensor, Any, list[int]], index: int) -> None:
        x, target, indices = batch
        network = self.best_network
        raw = network(self._layout(x))
        outputs = {n: _array(v) for n, v in self._half.outputs(network, raw).items()}
        targets, frames = self._originals(indices)
        results = self._task.decode(outputs, labels=self._labels, frames=frames, judging=True)
        assert self._meter is not None
        self._meter.update(results, targets)
        loss = float(self._half.loss(network, raw, target, name=self.recipe.loss))
        self._val += torch.tensor([len(x), loss * len(x)], dtype=torch.float64)

    def on_validation_epoch_end(self) -> None:
        total, meter = self._val, self._meter
        assert meter is not None
        if self.trainer.world_size > 1:
            total = self.trainer.strategy.reduce(total.to(self.device, torch.float32), reduce_op="sum").double().cpu()
            meters: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(meters, meter)
            meter = meters[0]
            for other in meters[1:]:
                meter.merge(other)
        count = max(1.0, float(total[0]))
        if not bool(torch.isfinite(total).all()):
            raise ZooError(
                f"the validation loss became NaN or infinite in epoch {self.current_epoch + 1}: lower --lr (now {self.lr:.3g})"
            )
        self.figures.update(val_loss=float(total[1]) / count, val_metric=float(meter.compute()[self._task.metric_name]))

    def on_validation_model_eval(self) -> None:
        self.eval()

    def on_validation_model_train(self) -> None:
        self._apply_policy()  # Lightning's own way back would put frozen BatchNorm into training mode


def _array(value: Tensor) -> np.ndarray:
    array: np.ndarray = (value.float() if value.is_floating_point() else value).cpu().numpy()
    return array


class Record(Callback):  # type: ignore[misc]
    """After each epoch, in this order: the row, the best weights, the resumable state; then stop where it no longer helps.

    ``keep(module, row)`` writes the best weights. Whoever is killed between two of the steps repeats the epoch and
    writes the same again.
    """

    def __init__(
        self,
        *,
        phase: str,
        metric_name: str,
        rows: list[dict[str, Any]],
        best: tuple[float, float] | None,
        keep: Callable[[Fitting, dict[str, Any]], None],
        csv_path: Path | None = None,
        state_path: Path | None = None,
        patience: int = 0,
        say: Callable[[str], None] = lambda text: None,
        progress: Progress | None = None,
    ) -> None:
        self.phase, self.metric_name = phase, metric_name
        self.rows, self.best = list(rows), best
        self.waited = 0
        self.stopped = ""
        self._keep, self._csv, self._state = keep, csv_path, state_path
        self._patience, self._say, self._progress = patience, say, progress
        self._bar = contextlib.ExitStack()
        self._advance: Callable[[int], None] = lambda done: None

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "best": self.best, "waited": self.waited, "stopped": self.stopped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows, self.waited = list(state_dict["rows"]), int(state_dict["waited"])
        self.best = None if state_dict["best"] is None else (state_dict["best"][0], state_dict["best"][1])
        self.stopped = str(state_dict["stopped"])

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if self.stopped:
            trainer.should_stop = True

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if self._progress is not None and trainer.is_global_zero:
            label = f"{self.phase} {trainer.current_epoch + 1}/{trainer.max_epochs}"
            self._advance = self._bar.enter_context(self._progress(label, trainer.num_training_batches))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._advance(batch_idx + 1)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._bar.close()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._bar.close()
        figures = pl_module.figures
        row = {
            "phase": self.phase,
            "epoch": trainer.current_epoch + 1,
            "train_loss": round(figures["train_loss"], 6),
            "val_loss": round(figures["val_loss"], 6),
            "val_metric": round(figures["val_metric"], 6),
            "lr": float(f"{trainer.optimizers[0].param_groups[0]['lr']:.6g}"),
            "images_per_s": round(figures["images_per_s"], 1),
            "seconds": round(figures["seconds"], 2),
        }
        self.rows.append(row)
        # equal metrics are common on small validation sets: then the smaller loss is better
        now = (figures["val_metric"], -figures["val_loss"])
        if self.best is None or now > self.best:
            self.best, self.waited = now, 0
            if trainer.is_global_zero:
                self._keep(pl_module, row)
        else:
            self.waited += 1
            if self._patience and self.waited >= self._patience:
                self.stopped = f"no better for {self.waited} epochs"
                trainer.should_stop = True
        if trainer.is_global_zero:
            self._say(
                f"{self.phase} {row['epoch']}/{trainer.max_epochs}: loss {row['train_loss']:.4f}, val loss {row['val_loss']:.4f}, "
                f"{self.metric_name} {100 * row['val_metric']:.2f} %, {row['images_per_s']:.0f} images/s"
                + (f"; stopped: {self.stopped}" if self.stopped else "")
            )
            if self._csv is not None:
                write_metrics(self._csv, self.rows)
        if self._state is not None:
            trainer.save_checkpoint(self._state)


def write_metrics(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """metrics.csv, whole: phase, epoch, losses, the task's metric, learning rate, images/s and seconds of training; and
    whatever else the rows tell."""
    text = io.StringIO()
    usual = ["phase", "epoch", "train_loss", "val_loss", "val_metric", "lr", "images_per_s", "seconds"]
    told = dict.fromkeys(name for row in rows for name in row)
    columns = [*(name for name in usual if name in told), *(name for name in told if name not in usual)]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


class AtomicIO(TorchCheckpointIO):  # type: ignore[misc]
    """Writes Lightning's state beside, then renames: a kill in the middle leaves the state of the epoch before."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        with beside(Path(path)) as part, part.open("wb") as file:
            try:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            except RuntimeError as error:  # torch's zip writer turns a full disk into one
                cause = error.__context__
                raise cause if isinstance(cause, OSError) else OSError(str(error)) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Lightning's tips and its advice to people who write training loops, kept from people who use one."""
    loggers = [
        logging.getLogger(name)
        for name in ("lightning.pytorch", "lightning.fabric", "lightning", "pytorch_lightning", "torch.distributed")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def fit(trainer: Any, module: Fitting, train: Any, val: Any, *, resume: Path | None = None) -> None:
    """``trainer.fit``, with an interrupt that arrives as KeyboardInterrupt and leaves the signal as it was."""
    before = signal.getsignal(signal.SIGINT)
    try:
        # the state holds tensors and plain values only, so nothing in it is run
        trainer.fit(module, train, val, ckpt_path=None if resume is None else str(resume), weights_only=True)
    except SystemExit:
        if trainer.interrupted:  # Lightning shuts down in good order, then leaves the process: ours has more to say
            raise KeyboardInterrupt from None
        raise
    finally:
        signal.signal(signal.SIGINT, before)
