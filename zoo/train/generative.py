"""One training run of players, from data to checkpoint: the steps of a fine-tuning run, with turns in place of a head.

Losses, gradients, what a discriminator tells apart, and pictures of every epoch lie beside the checkpoint, because
adversarial training cannot be judged by a loss. The averaged generator of the best epoch is what is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..data import Dataset
from ..data.degrading import Degradation
from ..data.targets import Picture
from ..errors import DataError, PluginError, UnknownName, ZooError
from ..files import write_bytes
from ..inputs import ImageInput, read_image, resize
from ..machine import cores
from ..parity.evidence import observe, prepared_batches
from ..reading import viewable
from ..registry import get_registry
from ..specs import Architecture, resolve
from ..tasks import measure, said, told
from ..tasks.pictures import PictureTask
from .data import Loader, batches, shuffled
from .engine import fit, quiet
from .evaluate import evaluate, evaluate_set
from .finetune import STATE, Summary, _precision, _Run
from .match import Match, Rounds, Validation
from .models import half_of, load_checkpoint, save_checkpoint
from .pictures import Pictures
from .players import Batch, Players, Rules
from .quality import collapsed, figures, real_images
from .reporting import grid, match_picture, png, write_report

__all__ = ["GenerativeRun"]

JUDGED_EACH_EPOCH = 64
"""Validation images of restoration and translation that an epoch is judged by; the end is judged by all."""
MADE_EACH_EPOCH = 256
"""Images that a generator draws to be compared with as many real ones after each epoch, and ..."""
MADE_AT_LAST = 1000
LOOKED_AT = 16
"""Images of a set that are asked whether it is grey."""
PERCEPTUAL = "vgg16"
"""Whose features a perceptual loss compares, where nobody says."""
SHOWN = 64
ONE_AT_A_TIME = "players take turns on one device: leave out --devices and --nodes"


class GenerativeRun(_Run):
    """The steps of a run in order: prepare, settle (once), then train."""

    model: Any
    half: Any
    task: PictureTask

    # -- what is there -----------------------------------------------------------------------------------------

    def prepare(self) -> None:
        o = self.options
        splits, folder = self._begin()
        channels = o.channels if o.channels is not None else self._channels(splits.train, folder, o.source)
        self._open(folder, splits.train.labels, channels)
        kind = self.model.task.name
        if not isinstance(self.model.network, Players):
            raise PluginError(
                f"architecture '{self.model.architecture.name}': a network of task {kind} is trained as zoo.train.players.Players, "
                f"this is a {type(self.model.network).__name__}"
            )
        if o.degrade and kind != "restore":
            raise ZooError(f"--degrade is for task restore, not for {kind}")
        if o.degrade:
            self.model.decode = {**self.model.decode, "degrade": str(Degradation.parse(o.degrade))}
        self.train_data = self._audited(splits.train.relabelled(self.model.labels))
        self.val_data = self._audited(splits.val.relabelled(self.model.labels))
        self.fingerprints = {"train": self.train_data.fingerprint(), "val": self.val_data.fingerprint()}
        self.half = resolve(self.model.task.trainer, f"task '{self.model.task.name}'")()
        half = half_of(self.model)
        assert isinstance(half, PictureTask)
        self.task = half
        self.scratch = self.model.weights == "none"
        self.paired = kind == "restore" or any(isinstance(s.target, Picture) for s in self.train_data)
        self._refuse_options()
        self._metric()

    def _channels(self, data: Dataset, folder: Path | None, source: str) -> int | None:
        """Of a generator of images: grey where the data is, if nobody said otherwise."""
        if folder is not None or get_registry().get(Architecture, source).makes is None or not len(data):
            return None
        return 1 if all(_is_grey(sample.image) for sample in data[:LOOKED_AT]) else None

    def _metric(self) -> None:
        """What an epoch is judged by: its name, whether less is better, and how it is printed."""
        kind = self.model.task.name
        if self.paired:
            self.metric_name, self.lower = self.task.metric_name, False
            self.said: Callable[[float], str] = lambda value: said(self.task, value)
        elif kind == "generate" or self.train_data.others:
            self.metric_name, self.lower, self.said = "KID", True, lambda value: f"{value:.5f}"
        else:
            self.metric_name, self.lower, self.said = "loss", True, lambda value: f"{value:.4g}"

    def _refuse_options(self) -> None:
        o, network = self.options, self.model.network
        kind, name = self.model.task.name, self.model.architecture.name
        if o.loss and o.loss not in network.losses:
            raise UnknownName(f"loss of {name}", o.loss, network.losses)
        if o.devices != "1" or o.nodes != 1:
            raise ZooError(ONE_AT_A_TIME)
        for flag, given in (
            ("--head-epochs", o.head_epochs), ("--mosaic", o.mosaic), ("--mixup", o.mixup), ("--cutmix", o.cutmix),
            ("--randaugment", o.randaugment), ("--label-smoothing", o.smoothing), ("--balance", o.balance),
            ("--lr auto", o.lr == "auto"), ("--batch-size auto", o.batch_size == "auto"),
        ):  # fmt: skip
            if given:
                raise ZooError(f"{flag} is not for task {kind}")
        if kind == "translate" and not self.paired and not self.train_data.others and "style" not in network.needs:
            raise DataError(
                f"{self.train_data.root} holds images of one kind, and {name} turns one kind into another: "
                "give pairs (two folders, or two images side by side), or trainA/ and trainB/"
            )
        if kind == "translate" and "style" not in network.needs and self.paired == network.unpaired:
            wanted = (
                "trainA/ and trainB/" if self.paired else "pairs: two folders of the same names, or images side by side"
            )
            raise DataError(f"{name} learns from {wanted}, which {self.train_data.root} does not hold")
        if "style" in network.needs and not o.style:
            raise ZooError(f"{name} learns the manner of one picture: give it with --style FILE")
        if o.style and "style" not in network.needs:
            raise ZooError(f"--style is not for {name}")

    # -- what is left open -------------------------------------------------------------------------------------

    def settle(self) -> None:
        o, network, d = self.options, self.model.network, self.half.defaults
        spec = self.model.makes or self.model.input
        patch = o.patch or (network.patch if self.model.input.resize == "crop" else 0)
        multiple = int(self.task.settings.get("multiple", 1))
        if patch % multiple:
            raise ZooError(f"--patch {patch} is no multiple of {multiple}, which {self.model.architecture.name} needs")
        large = min(spec.height, spec.width) >= 64
        flip = o.flip if o.flip is not None else o.augment if o.augment is not None else self.train_data.format != "idx"
        size = o.batch_size if isinstance(o.batch_size, int) else d.batch_size
        self.settled = {
            "epochs": o.epochs if o.epochs is not None else d.epochs[0 if not self.scratch else 1],
            "batch_size": size,
            "lr": o.lr,
            "loss": o.loss or network.losses[0],
            "ema": network.ema if o.ema is None else o.ema,
            "patch": patch,
            "augment": {"flip": flip, "turn": self.model.task.name == "restore" and o.augment is not False},
            "precision": _precision(o.precision, self._device(), large),
            "channels_last": large,
            "head_cached": False,
        }

    def _rules(self) -> Rules:
        o, network = self.options, self.model.network
        loss = self.settled["loss"]
        perceptual = None
        if network.needs_perceptual(loss):
            from .perceptual import Perceptual

            name, _, file = (o.perceptual or PERCEPTUAL).partition(":")
            perceptual = Perceptual(name, weights=file).to(self._device())
            if o.style:
                spec = ImageInput(height=256, width=256, resize="shortest")
                picture = np.array(resize(read_image(o.style, spec), spec), np.float32)
                perceptual.set_style(torch.from_numpy(picture).permute(2, 0, 1)[None].to(self._device()) / 255)
        return Rules(loss=loss, weights=o.loss_weights, perceptual=perceptual, augment=o.diffaugment, freeze=o.freeze)

    # -- training ----------------------------------------------------------------------------------------------

    def train(self) -> Summary | None:
        with quiet():
            self.write("ready")
            self._match()
            return self._finished()

    def _match(self) -> None:
        o, s, model = self.options, self.settled, self.model
        device = self._device()
        self.rules = self._rules()
        network: Players = model.network
        if s["channels_last"]:
            network = network.to(memory_format=torch.channels_last)
        images = Pictures(
            self.train_data,
            model.task.name,
            model.input,
            makes=model.makes,
            scale=int(self.task.settings.get("scale", 1)),
            degrade=str(self.task.settings.get("degrade", "")),
            patch=s["patch"],
            **s["augment"],
        )
        size = min(s["batch_size"], max(2, len(images)))
        repeats = max(1, -(-self.half.least_steps * size // len(images)))

        def plan(epoch: int) -> list[list[int]]:
            whole = batches(shuffled(len(images) * repeats, o.seed, epoch), size)
            return [b for b in whole if len(b) == size] or whole

        def make(indices: list[int], epoch: int) -> dict[str, Tensor]:
            return {k: torch.from_numpy(v) for k, v in images.batch(indices, seed=o.seed, epoch=epoch).items()}

        judge = self._judge(device)
        module = Match(
            network,
            rules=self.rules,
            lr=s["lr"],
            steps=s["epochs"] * len(plan(0)),
            ema=s["ema"],
            seed=o.seed,
            channels_last=s["channels_last"],
            validate=judge,
        )
        train = Loader(
            plan, make, epoch=lambda: module.current_epoch, workers=min(2, cores()) if o.workers is None else o.workers
        )
        val = Loader(lambda epoch: [[0]], lambda indices, epoch: torch.zeros(1))
        recorder = Rounds(
            lower=self.lower,
            said=self.said,
            show=self._show,
            phase="players",
            metric_name=self.metric_name,
            rows=[],
            best=None,
            keep=self._keep_best,
            csv_path=self.out / "metrics.csv",
            state_path=self.out / STATE,
            patience=o.patience,
            say=self.say,
            progress=self.progress,
        )
        state = self.out / STATE
        self.recorder = recorder
        if "before" not in self.settled:
            self._show(module, 0)
            network.to(device)
            self.settled["before"] = judge(network.generator.eval()).metric
            self.say(f"before: {self.metric_name} {self.said(self.settled['before'])}")
            self.write("ready")
        trainer = self._trainer(s["epochs"], [recorder], precision=s["precision"], devices="1", nodes=1)
        fit(trainer, module, train, val, resume=state if state.is_file() else None)

    def _keep_best(self, match: Any, row: Mapping[str, Any]) -> None:
        """The generator that was judged, and the others as they are: what a later run goes on with."""
        kept = match.network.generator
        match.network.generator = match.best_generator
        try:
            model = replace(self.model, network=match.network)
            metrics = {self.metric_name: row["val_metric"], "epoch": row["epoch"]}
            save_checkpoint(
                self.out / "checkpoint", model, metrics=metrics, data=self._data_facts(), seed=self.options.seed
            )
        finally:
            match.network.generator = kept

    # -- judging -----------------------------------------------------------------------------------------------

    def _judge(self, device: torch.device) -> Callable[[nn.Module], Validation]:
        """What tells how good a generator is, after each epoch."""
        model, task = self.model, self.task
        judged = task.samples(self.val_data, model.input, model.labels, MADE_EACH_EPOCH)
        if not judged.others and len(judged) > JUDGED_EACH_EPOCH:
            step = len(judged) / JUDGED_EACH_EPOCH
            judged = judged.subset([int(i * step) for i in range(JUDGED_EACH_EPOCH)])
        images = [s.image for s in judged][:MADE_EACH_EPOCH]
        if self.paired:

            def by_targets(generator: nn.Module) -> Validation:
                results = self._results(generator, images, device)
                found = measure(task, model.labels, results, judged.targets).compute()
                rest = {k: v for k, v in found.items() if isinstance(v, float) and k != task.metric_name}
                return Validation(metric=found[task.metric_name], figures=rest)

            return by_targets
        if self.metric_name == "KID":
            from .extractor import open_extractor

            extractor = open_extractor(self.options.features)
            real = extractor(self._real(MADE_EACH_EPOCH))

            def by_set(generator: nn.Module) -> Validation:
                made = [r.pixels for r in self._results(generator, images, device)]
                found = figures(made, real, extractor)
                rest = {k: float(v) for k, v in found.items() if k in ("FID", "precision", "recall", "diversity_made")}
                return Validation(metric=float(found["KID"]), figures=rest, warning=collapsed(found))

            return by_set

        tensor = torch.from_numpy(np.concatenate([t for t, _ in prepared_batches(images[:16], model.input)])).to(device)

        def by_loss(generator: nn.Module) -> Validation:
            """What the generator itself makes small, on images that it does not learn from."""
            network: Players = model.network
            moving, network.generator = network.generator, generator
            try:
                with torch.no_grad(), torch.autocast(device.type, enabled=False):
                    turn = network.play("generator", Batch(input=tensor), self.rules, {})
            finally:
                network.generator = moving
            found = {k: float(v) for k, v in turn.losses.items()}
            return Validation(metric=sum(found.values()), figures=found)

        return by_loss

    def _results(self, generator: nn.Module, images: Sequence[Any], device: torch.device) -> Sequence[Any]:
        """What a generator makes of inputs, in float32, as the task's records."""

        def run(batch: np.ndarray) -> dict[str, np.ndarray]:
            with torch.no_grad(), torch.autocast(device.type, enabled=False):
                return {"output": generator(torch.from_numpy(batch).to(device)).float().cpu().numpy()}

        size = 64 if self.model.input.color == "latent" else 0
        spec = self.model.input
        return observe(run, prepared_batches(images, spec, size), self.task, self.model.labels, spec).results

    def _real(self, count: int) -> list[np.ndarray]:
        """Real images of the validation split, filled up from training's where those are few."""
        if self.model.makes is None:
            return real_images(self.val_data.others, self.model.input, count)
        return real_images(self._filled_up(count).samples, self.model.makes, count)

    def _filled_up(self, count: int) -> Dataset:
        """The validation split, and as many training images as it lacks of ``count``."""
        missing = max(0, count - len(self.val_data))
        return replace(self.val_data, samples=(*self.val_data.samples, *self.train_data.samples[:missing]))

    # -- what is looked at -------------------------------------------------------------------------------------

    def _show(self, match: Match, epoch: int) -> None:
        """samples/NNN.png: the same latents, or the same images, after every epoch; 000 before the first."""
        (self.out / "samples").mkdir(exist_ok=True)
        generator = match.best_generator
        training = generator.training
        write_bytes(self.out / "samples" / f"{epoch:03d}.png", self._samples(generator.eval(), self._device()))
        generator.train(training)

    def _samples(self, generator: nn.Module, device: torch.device) -> bytes:
        model, task = self.model, self.task
        generator.to(device)
        judged = task.samples(self.val_data, model.input, model.labels, SHOWN)
        if model.makes is not None:
            results = self._results(generator, [s.image for s in judged], device)
            return png(grid([r.image() for r in results], columns=8))
        shown = judged[:: max(1, len(judged) // 6)][:6]
        results = self._results(generator, [s.image for s in shown], device)
        pictures: list[Image.Image] = []
        for sample, result in zip(shown, results, strict=True):
            before = viewable(read_image(sample.image, model.input, sample.id))
            box = result.box or (0, 0, *before.size)
            row = [before.crop(box).resize((result.width, result.height), Image.Resampling.NEAREST), result.image()]
            if isinstance(sample.target, Picture):
                scale = result.width // max(1, box[2] - box[0])
                row.append(Image.fromarray(sample.target.read()).crop(tuple(side * scale for side in box)))
            pictures += row
        return png(grid(pictures, columns=len(pictures) // max(1, len(shown))))

    # -- the end -----------------------------------------------------------------------------------------------

    def _finished(self) -> Summary:
        if not (self.out / "checkpoint").is_dir():
            raise ZooError("the run has no epochs: give --epochs")
        best: Any = load_checkpoint(self.out / "checkpoint")
        device = self._device()
        generator = best.network.generator.to(device).eval()
        if self.paired:
            with self._bar("evaluating", len(self.val_data)) as advance:
                metrics = evaluate(best, self.val_data, device=device, progress=advance).figures
        elif self.metric_name == "KID":
            real = self.val_data if best.makes is None else self._filled_up(MADE_AT_LAST)
            metrics = evaluate_set(best, real, count=MADE_AT_LAST, device=device, features=self.options.features)
        else:
            found = self._judge(device)(generator)
            metrics = {"loss": found.metric, **found.figures, "classes": []}
        save_checkpoint(
            self.out / "checkpoint", replace(best, network=best.network.cpu()), metrics=metrics, data=self._data_facts(),
            seed=self.options.seed,
        )  # fmt: skip
        pictures = {
            "curves": match_picture(self.recorder.rows, self.model.network.players, self.metric_name),
            "samples": self._samples(generator, device),
        }
        start = self.out / "samples" / "000.png"
        if start.is_file():
            pictures["before"] = start.read_bytes()
        best.network.cpu()
        self.seconds += time.monotonic() - self.started
        self.started = time.monotonic()
        report = write_report(
            self.out,
            title=f"{self.model.architecture.name} on {self.train_data.root.name}",
            facts=self._facts(metrics),
            classes=[],
            pictures=pictures,
        )
        self.write("finished", metrics=metrics)
        (self.out / STATE).unlink(missing_ok=True)
        return Summary(
            folder=self.out,
            checkpoint=self.out / "checkpoint",
            report=report,
            architecture=self.model.architecture.name,
            metric_name=self.metric_name,
            metrics=metrics,
            seconds=round(self.seconds, 2),
        )

    def _facts(self, metrics: dict[str, Any]) -> list[tuple[str, str]]:
        s, o = self.settled, self.options
        eyes, _, file = (o.perceptual or PERCEPTUAL).partition(":")
        return [
            *((k, str(told(self.task, k, v))) for k, v in metrics.items() if k != "classes"),
            *self._came_from(),
            (f"{self.metric_name} before", self.said(s["before"])),
            ("loss", ", ".join([s["loss"], *(f"{k} x {v:g}" for k, v in o.loss_weights.items())])),
            *(
                (("loss seen through", f"{eyes} ({Path(file).name or 'its own weights'})"),)
                if self.rules.perceptual is not None
                else ()
            ),
            *((("style", o.style),) if o.style else ()),
            *((("damage", degrade),) if (degrade := str(self.task.settings.get("degrade", ""))) else ()),
            ("epochs, batch", f"{s['epochs']}, {s['batch_size']}"),
            ("averaged generator", f"decay {s['ema']:g}" if s["ema"] else "no"),
            ("precision", s["precision"]),
            *self._made_with(),
        ]


def _is_grey(image: Any) -> bool:
    """Whether an image has no colours, as its array or the head of its file says."""
    if isinstance(image, np.ndarray):
        return image.ndim == 2 or image.shape[2] == 1
    try:
        with Image.open(image) as picture:
            return picture.mode in ("1", "L", "LA", "I;16")
    except (OSError, ValueError, TypeError):  # that it cannot be read is told elsewhere
        return False
