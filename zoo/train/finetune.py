"""One fine-tuning run from data to checkpoint: settles what was left open, then the head, then the network.

A run is a folder. ``run.json`` holds all that it depends on, so that ``resume`` needs nothing else; every file in it
is written beside and renamed; and each step that a kill can interrupt either left its result or is done again.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.tuner import Tuner
from safetensors.torch import load_file, save
from torch import Tensor, nn

from .. import __version__
from ..data import Dataset, Splits, audit, open_data
from ..errors import CheckpointError, DataError, OutputError, PluginError, UnknownName, ZooError
from ..files import as_output_error, dump_json, write_bytes
from ..inputs import ImageInput, read_image
from ..machine import cores
from ..registry import get_registry
from ..specs import PEAKS, Architecture, Task, resolve
from .augment import JointAugment, default_joint_augment
from .data import Augment, Images, Loader, batches, default_augment, shuffled
from .engine import AtomicIO, Fitting, Progress, Recipe, Record, fit, quiet, write_metrics
from .evaluate import Evaluation, evaluate
from .features import HeadOnly, compute, head_is_last, trunk
from .half import Half
from .models import checkpoint_labels, find_checkpoint, half_of, load_checkpoint, open_model, save_checkpoint, task_of
from .reporting import confusion_picture, curves_picture, samples_picture, write_report
from .transfer import Policy, layer_groups, trained_norms

__all__ = ["Options", "Summary", "finetune", "resume"]

SCHEMA = 2
RUN, STATE, HEAD, FEATURES = "run.json", "last.ckpt", "head", "features"
PLAIN_FROM = 0.85
"""Share of the epochs after which images are no longer put together to mosaics."""
FEATURE_BYTES = 2 << 30
"""Features beyond this are not kept in memory; the head then learns with the frozen backbone in front of it."""

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Options:
    """All that a run depends on, JSON-ready. None and "" mean: settle it by the rule that the command's help states."""

    source: str
    data: str
    format: str = ""
    val_share: float = 0.2
    weights: str = ""
    channels: int | None = None
    size: int | tuple[int, int] | None = None
    pixel: str = ""
    build: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the architecture's ``build``."""
    epochs: int | None = None
    head_epochs: int | None = None
    batch_size: int | str | None = None
    lr: float | str | None = None
    lr_decay: float | None = None
    weight_decay: float | None = None
    loss: str = ""
    smoothing: float = 0.0
    augment: bool | None = None
    flip: bool | None = None
    randaugment: int = 0
    mosaic: float | None = None
    mixup: float = 0.0
    cutmix: float = 0.0
    ema: float | None = None
    patch: int | None = None
    degrade: str = ""
    features: str = "random"
    perceptual: str = ""
    style: str = ""
    loss_weights: dict[str, float] = field(default_factory=dict)
    diffaugment: str = ""
    freeze: int = 0
    balance: bool = False
    patience: int = 0
    precision: str = "auto"
    accelerator: str = "auto"
    devices: str = "1"
    nodes: int = 1
    workers: int | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a run left. ``metrics`` are the best checkpoint's on the validation split, in float32."""

    folder: Path
    checkpoint: Path
    report: Path
    architecture: str
    metric_name: str
    metrics: dict[str, Any]
    seconds: float
    already_finished: bool = False

    def to_dict(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "folder": str(self.folder),
            "checkpoint": str(self.checkpoint),
            "report": str(self.report),
        }


def finetune(
    options: Options,
    out: Path,
    *,
    overwrite: bool = False,
    say: Say = lambda text: None,
    progress: Progress | None = None,
) -> Summary | None:
    """Fine-tune into the new folder ``out``. Returns None in the helper processes of a run on several devices.

    Raises ZooError's kin: OutputError where ``out`` already holds something, DataError, CheckpointError,
    UnknownName, and ZooError where the loss stops being a number. KeyboardInterrupt leaves a resumable folder.
    """
    out = Path(out)
    if not _is_primary():
        _wait_for(out / RUN)
        return resume(out, say=lambda text: None)
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file: choose another --out")
    if out.is_dir() and any(out.iterdir()):
        if not overwrite:
            if (out / RUN).is_file():
                raise OutputError(
                    f"{out} already holds a run: go on with it by --resume {out}, or choose another --out, or --overwrite"
                )
            raise OutputError(f"{out} already holds something: choose another --out, or --overwrite")
        if not (out / RUN).is_file():
            raise OutputError(
                f"{out} holds something that is not a run, and --overwrite removes only runs: choose another --out"
            )
    # everything that can be wrong with the input is found out before anything is written
    run = _run(options, out, say, progress)
    run.prepare()
    try:
        if out.is_dir() and overwrite:
            shutil.rmtree(out)
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise as_output_error(error, out) from error
    run.settle()
    run.write("running")
    return run.train()


def resume(out: Path, *, say: Say = lambda text: None, progress: Progress | None = None) -> Summary | None:
    """Go on with the run in ``out``; the result is that of a run which was never stopped. A finished one is left alone.

    Raises CheckpointError where ``out`` holds no run, DataError where its data has changed since.
    """
    out = Path(out)
    record = _read_run(out)
    if record["state"] == "finished" and _is_primary():
        return Summary(
            folder=out,
            checkpoint=out / "checkpoint",
            report=out / "report.html",
            architecture=record["architecture"],
            metric_name=record["metric_name"],
            metrics=record["metrics"],
            seconds=record["seconds"],
            already_finished=True,
        )
    known = {f.name for f in fields(Options)}
    run = _run(Options(**{k: v for k, v in record["options"].items() if k in known}), out, say, progress)
    run.prepare()
    if record["data"] != run.fingerprints:
        raise DataError(f"{run.options.data} has changed since the run {out} began: start a new run")
    run.settled = record["settled"]
    run.seconds = float(record["seconds"])
    return run.train()


def _read_run(out: Path) -> dict[str, Any]:
    try:
        record = json.loads((out / RUN).read_text("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{out} holds no run that could be resumed: give the folder that `zoo finetune --out` named"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{out / RUN} cannot be read: {error}") from None
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise CheckpointError(f"{out / RUN} is not a run of this version of zoo ({__version__}): start a new run")
    return record


def _is_primary() -> bool:
    """Whether this process is the one that writes: of several devices and nodes only the first."""
    return all(int(os.environ.get(name, "0") or 0) == 0 for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


def _wait_for(path: Path, timeout_s: float = 3600.0) -> None:
    end = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(CheckpointError):
            if _read_run(path.parent)["state"] == "ready":
                return
        if time.monotonic() > end:
            raise ZooError(f"waited {timeout_s:.0f} s for {path} from the first process: do all nodes see that folder?")
        time.sleep(0.2)


def _run(options: Options, out: Path, say: Say, progress: Progress | None) -> _Run:
    """The run of the task's kind. Raises UnknownName, CheckpointError."""
    task = get_registry().get(Task, task_of(options.source))
    own = getattr(resolve(task.trainer, f"task '{task.name}'"), "run", "")
    kind: type[_Run] = resolve(own, f"task '{task.name}'") if own else _Run
    return kind(options, out, say, progress)


class _Run:
    """The steps of one run, in order: prepare, settle (once), then train."""

    def __init__(self, options: Options, out: Path, say: Say, progress: Progress | None) -> None:
        self.options, self.out, self.say, self.progress = options, out, say, progress
        self.settled: dict[str, Any] = {}
        self.seconds = 0.0
        self.started = time.monotonic()

    # -- what is there -----------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Open and audit the data, open the network: all that can refuse."""
        o = self.options
        splits, folder = self._begin()
        train, val = splits.train, splits.val
        if folder is not None:
            known = checkpoint_labels(folder)
            if set(known) == set(splits.labels):  # the same classes in another order: the head can stay
                train, val = train.relabelled(known), val.relabelled(known)
        self._open(folder, train.labels, o.channels)
        self.train_data, self.val_data = self._audited(train), self._audited(val)
        self.fingerprints = {"train": self.train_data.fingerprint(), "val": self.val_data.fingerprint()}
        if folder is None and (o.pixel == "float32" or self.model.input.color == "bands"):
            self.model.input = measured(self.train_data, self.model.input)
        self.half: Half = resolve(self.model.task.trainer, f"task '{self.model.task.name}'")()
        self.task = half_of(self.model)
        self.metric_name = self.task.metric_name
        self.scratch = self.model.weights == "none"
        _ = self.model.head
        self._refuse_options()

    def _begin(self) -> tuple[Splits, Path | None]:
        """The data, and where the checkpoint lies, if the source is one."""
        o = self.options
        torch.manual_seed(o.seed)
        splits = open_data(o.data, task=task_of(o.source), format=o.format, val_share=o.val_share, seed=o.seed)
        return splits, find_checkpoint(o.source)

    def _open(self, folder: Path | None, labels: Sequence[str], channels: int | None) -> None:
        """Sets the model: a checkpoint's (``folder``), or an architecture's with the best weights that there are."""
        o, weights = self.options, self.options.weights or "pretrained"
        if folder is None:
            architecture = get_registry().get(Architecture, o.source)
            if architecture.name != o.source:
                self.say(f"{o.source} means {architecture.name}")
            if not o.weights and not architecture.weights:
                weights = "none"
                self.say(f"{architecture.name} has no pretrained weights: training from random ones")
        self.model = open_model(
            o.source,
            weights=weights,
            labels=labels,
            channels=channels,
            size=tuple(o.size) if isinstance(o.size, list) else o.size,
            pixel=o.pixel,
            options=o.build,
        )

    def _refuse_options(self) -> None:
        """Raises ZooError for an option that means nothing to the task: silence would look like consent."""
        o, task = self.options, self.model.task.name
        for flag, given in (
            ("--patch", o.patch), ("--degrade", o.degrade), ("--perceptual", o.perceptual), ("--style", o.style),
            ("--loss-weight", o.loss_weights), ("--diffaugment", o.diffaugment), ("--freeze", o.freeze),
        ):  # fmt: skip
            if given:
                raise ZooError(f"{flag} is for networks that make images, not for task {task}")
        if o.loss and o.loss not in self.half.losses:
            raise UnknownName(f"loss of task {task}", o.loss, self.half.losses)
        if task != "classify" and ((o.smoothing and task == "detect") or o.randaugment):
            raise ZooError(f"--{'randaugment' if o.randaugment else 'label-smoothing'} is not for task {task}")
        if task != "detect" and o.mosaic:
            raise ZooError(f"--mosaic is for detection, not for task {task}")
        if o.balance:
            self.half.balance(self.train_data)
        self.half.mixer(len(self.model.labels), mixup=o.mixup, cutmix=o.cutmix)
        self._choose_augment()

    def _audited(self, data: Dataset) -> Dataset:
        data = audit(data, input=self.model.input)
        for note in data.notes:
            self.say(f"warning: {note}")
        if data.faults:
            first = data.faults[0]
            self.say(
                f"warning: {len(data.faults)} faulty images or boxes of the {data.split} split are left out (first: {first.reason})"
            )
        return data

    # -- what is left open -------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Fix everything that the options leave open, once, so that a resumed run does the same."""
        o, model = self.options, self.model
        large = min(model.input.height, model.input.width) >= 64
        convolves = any(isinstance(m, nn.Conv2d) for m in model.network.modules())
        d, pick = self.half.defaults, 1 if self.scratch else 0
        self.settled = {
            "epochs": o.epochs if o.epochs is not None else d.epochs[pick],
            "precision": _precision(o.precision, self._device(), large),
            "channels_last": convolves and large,
            "augment": asdict(self._choose_augment()),
            "lr": o.lr if isinstance(o.lr, float) else d.lr[pick],
            "lr_decay": d.lr_decay if o.lr_decay is None else o.lr_decay,
            "weight_decay": d.weight_decay if o.weight_decay is None else o.weight_decay,
            "ema": d.ema if o.ema is None else o.ema,
        }
        count = len(self.train_data)
        usual = d.batch_size or (16 if count < 1000 else 32 if count < 10_000 else 128)
        batch = o.batch_size if isinstance(o.batch_size, int) else usual
        self.settled["batch_size"] = min(batch, count)
        new_head = model.provenance["head"] == "new"
        head_epochs = 0 if self.scratch or not new_head else 30 if o.head_epochs is None else o.head_epochs
        self.settled["head_epochs"] = head_epochs
        self.settled["head_cached"] = bool(head_epochs) and model.task.name == "classify" and self._features_fit()
        if o.batch_size == "auto":
            self.settled["batch_size"] = self._find_batch_size()
            self.say(f"batch size {self.settled['batch_size']}")
        if o.lr == "auto" and self.settled["epochs"]:
            self.settled["lr"] = self._find_lr()
            self.say(f"learning rate {self.settled['lr']:.3g}")

    def _choose_augment(self) -> Augment | JointAugment:
        o, spec, task = self.options, self.model.input, self.model.task.name
        if task == "classify":
            default = default_augment(self.train_data, spec)
            on = bool(default) if o.augment is None else o.augment
            flip = (default.flip if o.augment is None else on) if o.flip is None else o.flip
            return Augment(crop=0.35 if on else 1.0, flip=flip, magnitude=o.randaugment)
        joint = default_joint_augment(task, spec) if o.augment is not False else JointAugment()
        if o.flip is not None:
            joint = replace(joint, flip=o.flip)
        try:
            if task == "detect":
                joint = replace(joint, mixup=o.mixup, mosaic=joint.mosaic if o.mosaic is None else o.mosaic)
        except ValueError as error:
            raise ZooError(str(error)) from None
        return joint

    def _augment(self) -> Augment | JointAugment:
        values: dict[str, Any] = self.settled["augment"]
        return Augment(**values) if self.model.task.name == "classify" else JointAugment(**values)

    def _features_fit(self) -> bool:
        """Whether the head can learn on its own from features that fit in memory."""
        model = self.model
        if not head_is_last(model.network, model.head, model.input.shape):
            return False
        run, _, done = trunk(model.network, model.head, model.input.shape, torch.device("cpu"))
        width = run(np.zeros((1, *model.input.shape), np.float32)).nbytes
        done()
        return width * (2 * len(self.train_data) + len(self.val_data)) <= FEATURE_BYTES

    def _device(self) -> torch.device:
        wanted = self.options.accelerator
        if wanted in ("auto", "gpu", "cuda") and torch.cuda.is_available():
            return torch.device("cuda")
        if wanted in ("gpu", "cuda"):
            raise ZooError(
                f"--accelerator {wanted}: this machine has no GPU that torch can use: `zoo doctor` says what it has"
            )
        if wanted == "mps" or (wanted == "auto" and torch.backends.mps.is_available()):
            return torch.device("mps")
        return torch.device("cpu")

    def write(self, state: str, **more: Any) -> None:
        if not _is_primary():
            return
        dump_json(
            self.out / RUN,
            {
                "schema": SCHEMA,
                "state": state,
                "zoo": __version__,
                "architecture": self.model.architecture.name,
                "metric_name": self.metric_name,
                "options": asdict(self.options),
                "settled": self.settled,
                "data": self.fingerprints,
                "seconds": round(self.seconds + time.monotonic() - self.started, 2),
                **more,
            },
        )

    # -- training ----------------------------------------------------------------------------------------------

    def train(self) -> Summary | None:
        for left in self.out.glob(".*.part"):  # of a run that was killed while it wrote
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
        with quiet():
            rows, best = self._head_phase() if self.settled["head_cached"] else ([], None)
            self.write("ready")
            rows = self._network_phase(rows, best) if self.settled["epochs"] else rows
            if not _is_primary():
                return None
            return self._finish(rows)

    def _head_phase(self) -> tuple[list[dict[str, Any]], tuple[float, float] | None]:
        """Train the new head on features that are computed once; its result is kept for a resumed run."""
        tensors, record = self.out / f"{HEAD}.safetensors", self.out / f"{HEAD}.json"
        head = self.model.head
        if record.is_file():
            head.load_state_dict(load_file(tensors))
            done = json.loads(record.read_text("utf-8"))
            return list(done["rows"]), (done["best"][0], done["best"][1])
        o, s, device = self.options, self.settled, self._device()
        augment = self._augment()
        assert isinstance(augment, Augment)
        self.model.network.to(device)
        run, by, remove = trunk(self.model.network, head, self.model.input.shape, device)
        started = time.monotonic()
        views = ["train", "train-mirrored"] if augment.flip else ["train"]
        total = len(views) * len(self.train_data) + len(self.val_data)
        features: dict[str, Tensor] = {}
        with self._bar("features", total) as advance:
            before = 0
            for name in [*views, "val"]:
                data = self.val_data if name == "val" else self.train_data
                images = Images(data, self.model.input, budget_bytes=0)
                array = compute(
                    run, images, self.out / FEATURES, name, mirrored=name.endswith("mirrored"),
                    progress=lambda done, before=before: advance(before + done),  # type: ignore[misc]
                )  # fmt: skip
                features[name] = torch.from_numpy(array)
                before += len(data)
        remove()
        seconds = time.monotonic() - started
        self.say(f"features: {total} images by {by}, {total / max(seconds, 1e-9):.0f} images/s")
        x = torch.cat([features[v] for v in views])
        y = self.half.target(self.train_data.targets * len(views))
        val_y = self.half.target(self.val_data.targets)
        size = min(64, max(8, len(x) // 8))  # few images still make some steps an epoch

        def train_batch(indices: list[int], epoch: int) -> tuple[Tensor, Tensor]:
            return x[indices], y[indices]

        def val_batch(indices: list[int], epoch: int) -> tuple[Tensor, Tensor, list[int]]:
            return features["val"][indices], val_y[indices], indices

        module = Fitting(
            HeadOnly(head),
            half=self.half,
            task=self.task,
            groups=[list(head.parameters())],
            policy=Policy(epochs=s["head_epochs"], groups=1, gradual=False),
            recipe=Recipe(lr=_HEAD_LR, smoothing=o.smoothing, weight_decay=s["weight_decay"], seed=o.seed),
            steps=s["head_epochs"] * len(batches(range(len(x)), size)),
            labels=self.model.labels,
            originals=lambda indices: ([self.val_data[i].target for i in indices], []),
            weight=self._class_weight(),
        )
        train = Loader(
            lambda epoch: batches(shuffled(len(x), o.seed, epoch), size),
            train_batch,
            epoch=lambda: module.current_epoch,
        )
        val = Loader(lambda epoch: batches(range(len(val_y)), 1024), val_batch)
        kept: dict[str, Tensor] = {}

        def keep(fitting: Fitting, row: dict[str, Any]) -> None:
            kept.update({k: v.detach().cpu().clone() for k, v in head.state_dict().items()})

        lines: list[str] = []
        recorder = Record(
            phase="head",
            metric_name=self.task.metric_name,
            rows=[],
            best=None,
            keep=keep,
            say=lines.append,
            patience=o.patience,
        )
        trainer = self._trainer(s["head_epochs"], [recorder], precision="32-true", devices="1", nodes=1)
        fit(trainer, module, train, val)
        self.say(lines[-1])
        self.model.network.cpu()
        head.load_state_dict(kept)
        assert recorder.best is not None
        write_bytes(tensors, save({k: v.contiguous() for k, v in kept.items()}))
        dump_json(record, {"rows": recorder.rows, "best": list(recorder.best)})
        write_metrics(self.out / "metrics.csv", recorder.rows)
        self._keep(self.model.network, recorder.best, "head")
        shutil.rmtree(self.out / FEATURES, ignore_errors=True)
        return recorder.rows, recorder.best

    def _network_phase(self, rows: list[dict[str, Any]], best: tuple[float, float] | None) -> list[dict[str, Any]]:
        """Train the network: everything from scratch, or its groups one after another."""
        o, s = self.options, self.settled
        devices = self._count_devices()
        module, train, val = self._network_fitting(devices * o.nodes)
        recorder = Record(
            phase="network",
            metric_name=self.task.metric_name,
            rows=rows,
            best=best,
            keep=lambda fitting, row: self._keep(
                fitting.best_network, (row["val_metric"], -row["val_loss"]), "network"
            ),
            csv_path=self.out / "metrics.csv",
            state_path=self.out / STATE,
            patience=o.patience,
            say=self.say,
            progress=self.progress,
        )
        trainer = self._trainer(s["epochs"], [recorder], precision=s["precision"], devices=o.devices, nodes=o.nodes)
        state = self.out / STATE
        fit(trainer, module, train, val, resume=state if state.is_file() else None)
        return recorder.rows

    def _network_fitting(self, world: int) -> tuple[Fitting, Loader, Loader]:
        o, s, model = self.options, self.settled, self.model
        network = model.network
        if s["channels_last"]:
            network = network.to(memory_format=torch.channels_last)
        augment = self._augment()
        train_images = Images(self.train_data, model.input, augment)
        if isinstance(augment, JointAugment) and (augment.mosaic or augment.mixup):
            # the last epochs see images as they are: mosaics are not what a device will see (YOLOX, arXiv:2107.08430)
            plain = train_images.varied_by(augment.without_mosaic())
        else:
            plain = train_images
        val_images = Images(self.val_data, model.input)
        size, seed = s["batch_size"], o.seed

        def train_plan(epoch: int) -> list[list[int]]:
            return batches(shuffled(len(train_images), seed, epoch, _rank(), world), size)

        def val_plan(epoch: int) -> list[list[int]]:
            return batches(range(_rank(), len(val_images), world), max(size, 16))

        def train_batch(indices: list[int], epoch: int) -> tuple[Tensor, Any]:
            images = train_images if epoch < PLAIN_FROM * s["epochs"] else plain
            tensor, targets = images.batch(indices, seed=seed, epoch=epoch)
            return torch.from_numpy(tensor), self.half.target(targets)

        def val_batch(indices: list[int], epoch: int) -> tuple[Tensor, Any, list[int]]:
            tensor, targets = val_images.batch(indices)
            return torch.from_numpy(tensor), self.half.target(targets), indices

        if self.scratch:
            groups = [list(network.parameters())]
        elif model.task.name == "classify":
            groups = layer_groups(network, list(model.head.parameters()))
        else:
            # a new decoder on a trained encoder: all that is new learns first and fastest
            new = [p for name, p in network.named_parameters() if name not in model.loaded]
            groups = layer_groups(network, new or list(model.head.parameters()))
        uncached = s["head_epochs"] and not s["head_cached"]
        policy = Policy(
            epochs=s["epochs"],
            groups=len(groups),
            gradual=not self.scratch,
            head_first=min(2, s["epochs"] // 3) if uncached else 0,
        )
        steps = s["epochs"] * len(train_plan(0))
        module = Fitting(
            network,
            half=self.half,
            task=self.task,
            groups=groups,
            policy=policy,
            recipe=Recipe(
                lr=s["lr"],
                lr_decay=1.0 if self.scratch else s["lr_decay"],
                weight_decay=s["weight_decay"],
                smoothing=o.smoothing,
                ema=s["ema"],
                loss=o.loss,
                keep_statistics=trained_norms(network, model.loaded),
                channels_last=s["channels_last"],
                seed=seed,
            ),
            steps=steps,
            labels=model.labels,
            originals=lambda indices: (val_images.originals(indices), val_images.frames(indices)),
            weight=self._class_weight(),
            mixer=self.half.mixer(len(model.labels), mixup=o.mixup, cutmix=o.cutmix),
        )
        threads = min(4, cores()) if o.workers is None else o.workers
        train = Loader(
            train_plan, train_batch, epoch=lambda: module.current_epoch, workers=0 if train_images.compact else threads
        )
        val = Loader(val_plan, val_batch, workers=threads if not val_images.compact else 0)
        return module, train, val

    def _class_weight(self) -> Tensor | None:
        return self.half.balance(self.train_data) if self.options.balance else None

    def _keep(self, network: nn.Module, best: tuple[float, float], phase: str) -> None:
        best_model = replace(self.model, network=network)
        metrics = {self.task.metric_name: best[0], "val_loss": -best[1], "phase": phase}
        save_checkpoint(
            self.out / "checkpoint", best_model, metrics=metrics, data=self._data_facts(), seed=self.options.seed
        )

    def _data_facts(self) -> dict[str, Any]:
        return {
            "name": self.train_data.root.name,
            "format": self.train_data.format,
            "val_share": self.options.val_share,
            "split_seed": self.options.seed,
            "train": {"images": len(self.train_data), "fingerprint": self.fingerprints["train"]},
            "val": {"images": len(self.val_data), "fingerprint": self.fingerprints["val"]},
        }

    def _finish(self, rows: list[dict[str, Any]]) -> Summary:
        """Judge the best weights in float32 through the exported module; write the pictures and the page."""
        if not (self.out / "checkpoint").is_dir():
            raise ZooError("the run has no epochs: give --epochs or --head-epochs")
        best = load_checkpoint(self.out / "checkpoint")
        with self._bar("evaluating", len(self.val_data)) as advance:
            seen = evaluate(best, self.val_data, device=self._device(), progress=advance)
        best.decode = seen.half.tune(seen.results, seen.targets)
        if best.decode:  # precision and recall are told at the settings that were chosen
            half = half_of(best)
            seen = replace(seen, half=half, meter=half.meter(best.labels))
            seen.meter.update(seen.results, seen.targets)
            self.say(", ".join(f"{k} {v}" for k, v in best.decode.items()) + ": chosen on the validation split")
        metrics = seen.figures
        save_checkpoint(self.out / "checkpoint", best, metrics=metrics, data=self._data_facts(), seed=self.options.seed)
        pictures = {"curves": curves_picture(rows, self.task.metric_name), **self._pictures(best.labels, seen)}
        self.seconds += time.monotonic() - self.started
        self.started = time.monotonic()
        report = write_report(
            self.out,
            title=f"{self.model.architecture.name} on {self.train_data.root.name}",
            facts=self._facts(metrics),
            classes=metrics["classes"],
            pictures=pictures,
        )
        self.write("finished", metrics=metrics)
        # what only a resumed run would need
        for name in (STATE, f"{HEAD}.safetensors", f"{HEAD}.json"):
            (self.out / name).unlink(missing_ok=True)
        return Summary(
            folder=self.out,
            checkpoint=self.out / "checkpoint",
            report=report,
            architecture=self.model.architecture.name,
            metric_name=self.task.metric_name,
            metrics=metrics,
            seconds=round(self.seconds, 2),
        )

    def _pictures(self, labels: tuple[str, ...], seen: Evaluation) -> dict[str, bytes]:
        """What of the answers is worth looking at: a confusion matrix, or samples with truth and answer side by side."""
        if seen.half.draws_on_image:
            return {"samples": samples_picture(self.val_data, self.model.input, labels, seen)}
        return {"confusion": confusion_picture(seen.meter.matrix, labels)}  # type: ignore[attr-defined]

    def _facts(self, metrics: dict[str, Any]) -> list[tuple[str, str]]:
        s = self.settled
        return [
            *((k, f"{100 * v:.2f} %") for k, v in metrics.items() if isinstance(v, float)),
            *self._came_from(),
            (
                "input",
                " × ".join(map(str, self.model.input.shape))
                + f", {self.model.input.resize}, {self.model.input.interpolation}",
            ),
            (
                "epochs",
                f"{s['head_epochs'] if s['head_cached'] else 0} of the head on cached features, {s['epochs']} of the network",
            ),
            ("batch, learning rate", f"{s['batch_size']}, {s['lr']:.3g} (decay {s['lr_decay']:g} a group)"),
            ("precision", s["precision"] + (", channels-last" if s["channels_last"] else "")),
            ("augmentation", ", ".join(f"{k} {v}" for k, v in s["augment"].items())),
            *self._made_with(),
        ]

    def _came_from(self) -> list[tuple[str, str]]:
        weights = " ".join(str(v) for k, v in self.model.provenance.get("weights", {}).items() if k in ("kind", "name"))
        return [
            ("training images", f"{len(self.train_data)} ({self.train_data.source})"),
            ("validation images", f"{len(self.val_data)} ({self.val_data.source})"),
            ("architecture", self.model.architecture.name),
            ("started from", "a checkpoint" if self.model.weights == "checkpoint" else weights),
        ]

    def _made_with(self) -> list[tuple[str, str]]:
        p = self.model.provenance
        return [
            ("seed", str(self.options.seed)),
            ("licences", ", ".join(p.get("licences", [])) or "none stated"),
            ("versions", ", ".join(f"{k} {v}" for k, v in p.get("versions", {}).items())),
            ("time", f"{self.seconds:.0f} s"),
        ]

    # -- Lightning ---------------------------------------------------------------------------------------------

    def _trainer(self, epochs: int, callbacks: list[Any], *, precision: str, devices: str, nodes: int) -> Any:
        several = devices != "1" or nodes > 1
        try:
            return L.Trainer(
                max_epochs=epochs,
                accelerator=self.options.accelerator,
                devices=devices if devices == "auto" or "," in devices else int(devices),
                num_nodes=nodes,
                # a group that is not open yet has no gradients
                strategy="ddp_find_unused_parameters_true"
                if several and not self.scratch
                else "ddp"
                if several
                else "auto",
                precision=precision,
                callbacks=callbacks,
                plugins=[AtomicIO()],
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                num_sanity_val_steps=0,
                use_distributed_sampler=False,
                default_root_dir=self.out,
            )
        except (ValueError, RuntimeError, TypeError) as error:  # what Lightning raises on settings it cannot serve
            raise ZooError(f"Lightning refuses these settings: {' '.join(str(error).split())[:300]}") from None
        except Exception as error:
            if type(error).__name__ == "MisconfigurationException":
                raise ZooError(f"Lightning refuses these settings: {' '.join(str(error).split())[:300]}") from None
            raise

    def _count_devices(self) -> int:
        devices = self.options.devices
        if "," in devices:
            return len([d for d in devices.split(",") if d])
        if devices in ("auto", "-1"):
            return max(1, torch.cuda.device_count()) if self._device().type == "cuda" else 1
        return int(devices)

    def _find_lr(self) -> float:
        """The learning-rate range test of Smith 2017 (arXiv:1506.01186), Lightning's own, on a copy of the network."""
        kept = {k: v.clone() for k, v in self.model.network.state_dict().items()}
        with quiet(), tempfile.TemporaryDirectory() as folder:
            module, train, _ = self._network_fitting(1)
            trainer = L.Trainer(
                max_epochs=-1, accelerator=self._device().type, devices=1, precision=self.settled["precision"], logger=False,
                enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
            )  # fmt: skip
            finder = Tuner(trainer).lr_find(
                module, train_dataloaders=train, min_lr=1e-6, max_lr=0.3, num_training=40, update_attr=False
            )
            found = None if finder is None else finder.suggestion()
        self.model.network.cpu().load_state_dict(kept)
        if found is None or not math.isfinite(found):
            self.say("the learning-rate finder found no slope; the default is used")
            return float(self.settled["lr"])
        return float(found)

    def _find_batch_size(self) -> int:
        """The largest power of two, up to 256 and to a twentieth of the images, whose step fits in memory."""
        cap = max(8, min(256, len(self.train_data) // 20))
        size = 1 << (cap.bit_length() - 1)
        device = self._device()
        network, shape = self.model.network.to(device).train(), self.model.input.shape
        placed = Images(self.train_data, self.model.input, budget_bytes=0).batch([0])[1][0]

        def step(batch: int) -> None:
            raw = network(torch.zeros(batch, *shape, device=device))
            target = self.half.target([placed] * batch)
            target = (
                target.to(device)
                if isinstance(target, Tensor)
                else [{k: v.to(device) for k, v in t.items()} for t in target]
            )
            loss = self.half.loss(network, raw, target)
            torch.autograd.backward(loss)
            network.zero_grad(set_to_none=True)

        kept = {k: v.clone() for k, v in network.state_dict().items()}
        try:
            if device.type == "cpu" and sys.platform != "win32":
                import resource

                before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                step(8)
                image_kib = max(1, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 8
                while size > 8 and 1.5 * size * image_kib > 0.5 * _free_kib():
                    size //= 2
            while device.type == "cuda" and size > 1:
                try:
                    step(size)
                    break
                except torch.cuda.OutOfMemoryError:
                    torch.cuda.empty_cache()
                    size //= 2
        except Exception as error:
            raise PluginError(
                f"{self.model.architecture.name} cannot make a training step: {type(error).__name__}: {error}"
            ) from error
        finally:
            network.load_state_dict(kept)
            network.cpu().eval()
        return min(size, len(self.train_data))

    @contextlib.contextmanager
    def _bar(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        if self.progress is None:
            yield lambda done: None
        else:
            with self.progress(label, total) as advance:
                yield advance


def measured(data: Dataset, spec: ImageInput, count: int = 64) -> ImageInput:
    """The input with mean and standard deviation of each channel over ``count`` images, evenly spaced: nobody published
    any for bands, nor for measurements in units of their own. Raises ImageError."""
    sums, squares, pixels = np.zeros(spec.channels), np.zeros(spec.channels), 0
    for sample in data[:: max(1, len(data) // count)][:count]:
        values = np.asarray(read_image(sample.image, spec, sample.id), np.float64).reshape(-1, spec.channels)
        sums, squares, pixels = sums + values.sum(axis=0), squares + (values**2).sum(axis=0), pixels + len(values)
    mean = sums / pixels
    std = np.sqrt(np.maximum(squares / pixels - mean**2, 0))
    peak = PEAKS[spec.pixel]
    flat = np.where(std > 0, std, peak)  # a band that is the same everywhere tells nothing, whatever it is divided by
    return replace(spec, mean=tuple((mean / peak).tolist()), std=tuple((flat / peak).tolist()))


_HEAD_LR = 3e-3
"""The head alone is a small convex problem on fixed features; this is right for any backbone whose features are pooled."""


def _rank() -> int:
    return (
        torch.distributed.get_rank() if torch.distributed.is_available() and torch.distributed.is_initialized() else 0
    )


def _precision(wanted: str, device: torch.device, large: bool) -> str:
    """``auto`` is bf16 where the hardware multiplies it and the input is large enough to gain from it."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    if device.type == "cpu" and large and torch.cpu._is_avx512_bf16_supported():
        return "bf16-mixed"
    return "32-true"


def _free_kib() -> float:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable"):
                return float(line.split()[1])
    except OSError:
        pass
    return 4 * 1024 * 1024
