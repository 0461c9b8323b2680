"""Measures the zoo side by side with the plainest thing that does the same job; prints ratios, never verdicts on time."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
ASSETS = Path(os.environ.get("ZOO_ASSETS", ROOT.parent / "shared" / "assets"))
RESULTS = ROOT / "benchmarks" / "results.json"


def interleaved(
    a: Callable[[], object], b: Callable[[], object], *, seconds: float, warmup: int = 5
) -> tuple[list[float], list[float]]:
    """Seconds of each call of ``a`` and ``b``, taking turns (a b b a …)."""
    for _ in range(warmup):
        a(), b()
    ours: list[float] = []
    theirs: list[float] = []
    end = time.perf_counter() + seconds
    turn = 0
    while time.perf_counter() < end or turn < 5:
        for which in ("ab", "ba")[turn % 2]:
            start = time.perf_counter()
            (a if which == "a" else b)()
            (ours if which == "a" else theirs).append(time.perf_counter() - start)
        turn += 1
    return ours, theirs


LAUNCHER = """
import json, os, subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(child.pid, 0)
print(json.dumps([os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024]))
"""


def process(command: list[str]) -> tuple[float, float]:
    """CPU seconds (user + system) and peak MiB of one whole process.

    Started from a small process: a child counts the peak of whoever forked it as its own.
    """
    done = subprocess.run([sys.executable, "-c", LAUNCHER, *command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-800:])
    code, cpu, peak = json.loads(done.stdout)
    if code:
        raise RuntimeError(f"{command} exited with {code}: {done.stderr[-800:]}")
    return cpu, peak


def processes(ours: list[str], theirs: list[str], runs: int = 7) -> dict[str, float]:
    process(ours), process(theirs)
    pairs = [(process(ours), process(theirs)) for _ in range(runs)]
    cpu = statistics.median(a[0] / b[0] for a, b in pairs)
    return {
        "cpu_ratio": cpu,
        "memory_ratio": statistics.median(a[1] / b[1] for a, b in pairs),
        "ours_cpu_s": statistics.median(a[0] for a, _ in pairs),
        "theirs_cpu_s": statistics.median(b[0] for _, b in pairs),
        "ours_peak_mib": statistics.median(a[1] for a, _ in pairs),
        "theirs_peak_mib": statistics.median(b[1] for _, b in pairs),
    }


def zoo(*args: object) -> None:
    subprocess.run([sys.executable, "-m", "zoo", *(str(a) for a in args)], check=True, stdout=subprocess.DEVNULL)


class Workshop:
    """Bundles and photos, made once for all benchmarks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def bundle(self, architecture: str, *options: str) -> Path:
        out = self.folder / architecture
        if not out.exists():
            weights = ASSETS / "weights" / f"{architecture}.imagenet1k.safetensors"
            zoo("export", architecture, "--weights", weights if weights.is_file() else "none", "--out", out, *options)
        return out

    def photo(self) -> Path:
        path = self.folder / "photo.jpg"
        if not path.exists():
            from PIL import Image
            from sklearn.datasets import load_sample_images

            Image.fromarray(load_sample_images().images[0]).resize((1280, 854)).save(path, quality=92)
        return path


def microseconds(values: list[float]) -> float:
    return 1e6 * statistics.median(values)


def bench_call(shop: Workshop) -> dict[str, object]:
    import onnxruntime

    import zoo.runtime

    found: dict[str, object] = {}
    for name in ("lenet5", "mobilenetv2_100"):
        bundle = shop.bundle(name)
        model = zoo.runtime.load(bundle, threads=1)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        raw = onnxruntime.InferenceSession(str(bundle / "model.fp32.onnx"), options, providers=["CPUExecutionProvider"])
        key = raw.get_inputs()[0].name
        x = np.random.default_rng(0).normal(size=(1, *model.input.shape)).astype(np.float32)
        ours, theirs = interleaved(
            lambda model=model, x=x: model.run(x), lambda raw=raw, key=key, x=x: raw.run(None, {key: x}), seconds=6
        )
        found[name] = {
            "ours_us": microseconds(ours),
            "bare_us": microseconds(theirs),
            "extra_us": microseconds(ours) - microseconds(theirs),
            "ratio": statistics.median(ours) / statistics.median(theirs),
        }
    return found


def naive_preprocess(image, spec) -> np.ndarray:  # type: ignore[no-untyped-def]
    """What most scripts do: resize the short side, cut the centre, divide, subtract, divide."""
    from PIL import Image

    scale = int(spec.height / spec.crop)
    w, h = image.size
    size = (scale, int(scale * h / w)) if w <= h else (int(scale * w / h), scale)
    method = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[spec.interpolation]
    small = image.convert("RGB").resize(size, method)
    left, top = round((size[0] - spec.width) / 2), round((size[1] - spec.height) / 2)
    cut = np.asarray(small.crop((left, top, left + spec.width, top + spec.height)))
    x = (cut.astype(np.float32) / 255 - np.float32(spec.mean)) / np.float32(spec.std)
    return np.ascontiguousarray(x.transpose(2, 0, 1)[None])


def bench_predict(shop: Workshop) -> dict[str, object]:
    import onnxruntime
    from PIL import Image

    import zoo.runtime

    bundle = shop.bundle("mobilenetv2_100")
    model = zoo.runtime.load(bundle, threads=1)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    raw = onnxruntime.InferenceSession(str(bundle / "model.fp32.onnx"), options, providers=["CPUExecutionProvider"])
    key = raw.get_inputs()[0].name
    image = Image.open(shop.photo()).convert("RGB")
    image.load()

    def theirs() -> int:
        return int(raw.run(["scores"], {key: naive_preprocess(image, model.input)})[0].argmax())

    assert theirs() == model(image).index
    ours_s, theirs_s = interleaved(lambda: model(image).index, theirs, seconds=10)
    ready = model.prepare([image])[0]
    post_s, bare_s = interleaved(
        lambda: model.task.decode(model.session.run(ready, ["scores"]), labels=model.labels, frames=())[0].index,
        lambda: int(raw.run(["scores"], {key: ready})[0].argmax()),
        seconds=6,
    )
    return {
        "ratio": statistics.median(ours_s) / statistics.median(theirs_s),
        "ours_ms": 1e3 * statistics.median(ours_s),
        "naive_ms": 1e3 * statistics.median(theirs_s),
        "ratio_without_preprocessing": statistics.median(post_s) / statistics.median(bare_s),
    }


def bench_preprocess(shop: Workshop) -> dict[str, object]:
    from PIL import Image

    from zoo.inputs import preprocess
    from zoo.specs import ImageInput

    spec = ImageInput(height=224, width=224, crop=0.875)
    photo = Image.open(shop.photo()).convert("RGB")
    found: dict[str, object] = {}
    for name, image in {
        "1280x854": photo,
        "640x427": photo.resize((640, 427)),
        "1920x1281": photo.resize((1920, 1281)),
    }.items():
        step = (
            np.abs(preprocess(image, spec) - naive_preprocess(image, spec)[0])
            * 255
            * np.float32(spec.std)[:, None, None]
        )
        ours, theirs = interleaved(
            lambda i=image: preprocess(i, spec), lambda i=image: naive_preprocess(i, spec), seconds=4
        )
        found[name] = {
            "faster": statistics.median(theirs) / statistics.median(ours),
            "max_difference_in_255ths": float(step.max()),
        }
    return found


def bench_int8(shop: Workshop) -> dict[str, object]:
    import zoo.runtime

    bundle = shop.bundle("resnet18", "--precision", "fp32,int8", "--waive", "speed only: the weights are random")
    found: dict[str, object] = {}
    models = {name: zoo.runtime.load(bundle, artifact=name, threads=1) for name in ("fp32", "int8")}
    x = np.random.default_rng(0).normal(size=(1, *models["fp32"].input.shape)).astype(np.float32)
    fp32, int8 = interleaved(lambda: models["fp32"].run(x), lambda: models["int8"].run(x), seconds=10)
    sizes = {n: (bundle / f"model.{n}.onnx").stat().st_size for n in models}
    found["resnet18"] = {
        "faster": statistics.median(fp32) / statistics.median(int8),
        "fp32_ms": 1e3 * statistics.median(fp32),
        "int8_ms": 1e3 * statistics.median(int8),
        "size_ratio": sizes["int8"] / sizes["fp32"],
    }
    return found


def bench_help(shop: Workshop) -> dict[str, object]:
    base = [sys.executable, "-c", "import numpy, onnxruntime"]
    return {
        "zoo --help": processes([sys.executable, "-m", "zoo", "--help"], base),
        "zoo list": processes([sys.executable, "-m", "zoo", "list"], base),
    }


OURS = """
import sys, zoo.runtime
print(zoo.runtime.load(sys.argv[1])(sys.argv[2]).label)
"""

RAW = """
import json, sys
import numpy as np, onnxruntime
from PIL import Image
m = json.load(open(sys.argv[1] + "/zoo.json"))
spec, labels = m["input"], m["labels"]
session = onnxruntime.InferenceSession(sys.argv[1] + "/model.fp32.onnx", providers=["CPUExecutionProvider"])
image = Image.open(sys.argv[2]).convert("RGB")
scale = int(spec["height"] / spec["crop"])
w, h = image.size
size = (scale, int(scale * h / w)) if w <= h else (int(scale * w / h), scale)
small = image.resize(size, {"bilinear": 2, "bicubic": 3}[spec["interpolation"]])
left, top = round((size[0] - spec["width"]) / 2), round((size[1] - spec["height"]) / 2)
x = np.asarray(small.crop((left, top, left + spec["width"], top + spec["height"]))).astype(np.float32) / 255
x = ((x - np.float32(spec["mean"])) / np.float32(spec["std"])).transpose(2, 0, 1)[None]
print(labels[int(session.run(["scores"], {"image": x})[0].argmax())])
"""


def bench_process(shop: Workshop) -> dict[str, object]:
    bundle, photo = shop.bundle("mobilenetv2_100"), shop.photo()
    return processes(
        [sys.executable, "-c", OURS, str(bundle), str(photo)],
        [sys.executable, "-c", RAW, str(bundle), str(photo)],
        runs=9,
    )


def photos(shop: Workshop, count: int = 160) -> Path:
    """A two-class folder of photos: hymenoptera where the assets are, else seeded natural images."""
    real = ASSETS / "hymenoptera"
    if real.is_dir():
        return real
    from PIL import Image

    from zoo.parity.evidence import natural_images

    root = shop.folder / "photos"
    for label in ("a", "b"):
        (root / label).mkdir(parents=True, exist_ok=True)
    for i, pixels in enumerate(natural_images(count, 320, 400)):
        Image.fromarray(pixels).save(root / "ab"[i % 2] / f"{i}.jpg")
    return root


BARE_EXPORT = """
import sys, numpy as np, torch, onnxruntime
from pathlib import Path
from zoo.train.models import open_model, deployable
from zoo.data import open_data
from zoo.inputs import preprocess_batch
model = open_model(sys.argv[1])
network = deployable(model)
torch.onnx.export(network, (torch.zeros(2, *model.input.shape),), sys.argv[3], dynamo=True, opset_version=20,
                  dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False)
session = onnxruntime.InferenceSession(sys.argv[3], providers=["CPUExecutionProvider"])
val = open_data(sys.argv[2]).val
hits = 0
for start in range(0, len(val), 16):
    part = val[start:start + 16]
    x = preprocess_batch([s.image for s in part], model.input)
    with torch.inference_mode():
        hits += int((network(torch.from_numpy(x))[1].argmax(1).numpy() == [s.target for s in part]).sum())
print(hits)
"""


def bench_export(shop: Workshop) -> dict[str, object]:
    data = photos(shop)
    run = shop.folder / "tuned"
    if not run.exists():
        zoo(
            "finetune",
            "resnet18",
            "--weights",
            "none",
            "--data",
            data,
            "--out",
            run,
            "--epochs",
            "1",
            "--batch-size",
            "16",
        )
    out = shop.folder / "exported"
    ours = [
        sys.executable,
        "-m",
        "zoo",
        "export",
        str(run),
        "--to",
        "onnx",
        "--data",
        str(data),
        "--out",
        str(out),
        "--overwrite",
        "--precision",
        "fp32",
    ]
    ours += ["--waive", "speed only: barely trained"]
    bare = [sys.executable, "-c", BARE_EXPORT, str(run), str(data), str(shop.folder / "bare.onnx")]
    return processes(ours, bare, runs=3)


BARE_TRAIN = """
import sys, time, numpy as np, torch
from pathlib import Path
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T
from torchvision.datasets import ImageFolder
import timm
torch.manual_seed(0)
precision, channels_last = sys.argv[2], sys.argv[3] == "1"
root = Path(sys.argv[1])
root = root / "train" if (root / "train").is_dir() else root
data = ImageFolder(root, T.Compose([
    T.RandomResizedCrop(224, scale=(0.35, 1)), T.RandomHorizontalFlip(), T.ToTensor(),
    T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]))
model = timm.create_model("resnet18", num_classes=len(data.classes))
if channels_last:
    model = model.to(memory_format=torch.channels_last)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
loader = DataLoader(data, batch_size=16, shuffle=True, num_workers=0)
model.train()
for epoch in range(2):
    count, start = 0, time.perf_counter()
    for x, y in loader:
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = torch.nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        count += len(x)
    print(count / (time.perf_counter() - start))
"""


def bench_train(shop: Workshop) -> dict[str, object]:
    """Images/s of the second epoch: `zoo finetune --weights none` and a bare loop, each in a process of its own, in turn."""
    import csv

    data = photos(shop)
    found: dict[str, list[float]] = {"ours": [], "bare fp32": [], "bare bf16 channels-last": [], "ours fp32": []}
    for turn in range(2):
        for name, extra in (("ours", []), ("ours fp32", ["--precision", "32-true"])):
            out = shop.folder / f"train-{name.replace(' ', '-')}-{turn}"
            zoo(
                "finetune",
                "resnet18",
                "--weights",
                "none",
                "--data",
                data,
                "--out",
                out,
                "--epochs",
                2,
                "--batch-size",
                16,
                "--lr",
                1e-3,
                "--overwrite",
                *extra,
            )
            rows = list(csv.DictReader((out / "metrics.csv").open()))
            found[name].append(float(rows[-1]["images_per_s"]))
        for name, arguments in (("bare fp32", ["fp32", "0"]), ("bare bf16 channels-last", ["bf16", "1"])):
            done = subprocess.run(
                [sys.executable, "-c", BARE_TRAIN, str(data), *arguments], check=True, capture_output=True, text=True
            )
            found[name].append(float(done.stdout.split()[-1]))
    speed = {name: statistics.median(values) for name, values in found.items()}
    return {
        "images_per_s": speed,
        "same_precision_ratio": speed["ours fp32"] / speed["bare fp32"],
        "default_against_bare_fp32": speed["ours"] / speed["bare fp32"],
        "default_against_bare_bf16": speed["ours"] / speed["bare bf16 channels-last"],
    }


def bench_features(shop: Workshop) -> dict[str, object]:
    """Seconds of thirty head epochs on cached features, against what thirty forward passes of the frozen network take."""
    import torch

    from zoo.data import open_data
    from zoo.inputs import preprocess_batch
    from zoo.train.models import open_model

    data = photos(shop)
    weights = ASSETS / "weights" / "mobilenetv2_100.imagenet1k.safetensors"
    out = shop.folder / "head"
    start = time.perf_counter()
    zoo(
        "finetune",
        "mobilenetv2_100",
        "--weights",
        weights if weights.is_file() else "none",
        "--data",
        data,
        "--out",
        out,
        "--epochs",
        0,
        "--head-epochs",
        30,
        "--overwrite",
    )
    ours = time.perf_counter() - start
    network = open_model("mobilenetv2_100", weights="none").network
    train = open_data(data).train
    x = torch.from_numpy(
        preprocess_batch([s.image for s in train[:32]], open_model("mobilenetv2_100", weights="none").input)
    )
    with torch.inference_mode():
        network(x)
        start = time.perf_counter()
        network(x)
        forward = (time.perf_counter() - start) / len(x)
    naive = 30 * forward * len(train)
    return {"ours_whole_command_s": ours, "thirty_forward_passes_s": naive, "faster": naive / ours}


def bench_postprocess(shop: Workshop) -> dict[str, object]:
    from benchmarks.postprocess import main as measure

    return {"rows": measure()}


ENLARGE = """
import resource, sys
import numpy as np, onnxruntime
from zoo.runtime.whole import made_of
from zoo.specs import ImageInput
from zoo.tasks.restore import Restore
spec = ImageInput(height=64, width=64, resize="crop", mean=(0.0,) * 3, std=(1.0,) * 3)
pixels = np.random.default_rng(0).integers(0, 256, (4000, 6000, 3), np.uint8)
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - pixels.nbytes / 1024
made = made_of(lambda x: {"output": x.repeat(2, axis=2).repeat(2, axis=3)}, pixels, spec, Restore(scale=2))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((peak - base) / 1024, (pixels.nbytes + made.pixels.nbytes) / 2**20)
"""


def bench_enlarge(shop: Workshop) -> dict[str, object]:
    """Of a network that costs nothing: each pixel is repeated."""
    # from a small process: a child counts the peak of whoever forked it as its own
    launch = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]], check=True)"
    done = subprocess.run([sys.executable, "-c", launch, ENLARGE], check=True, capture_output=True, text=True)
    ours, least = map(float, done.stdout.split())
    return {"memory_ratio": ours / least, "ours_mib": ours, "image_and_result_mib": least}


BENCHMARKS = {
    name.removeprefix("bench_"): function for name, function in list(globals().items()) if name.startswith("bench_")
}


def markdown(results: dict[str, dict]) -> str:
    """The measured figures as the table that the README shows."""
    call, train = results["call"], results["train"]
    rows = [
        ("one call on a ready tensor, LeNet-5", "bare `InferenceSession.run`", f"+{call['lenet5']['extra_us']:.1f} µs", "+10 µs"),
        ("the same, MobileNetV2", "bare `InferenceSession.run`", f"{call['mobilenetv2_100']['ratio']:.3f}x", "1.02x"),
        ("photo to answer, MobileNetV2", "naive Pillow and numpy", f"{results['predict']['ratio']:.2f}x", "1.02x"),
        *(
            (f"preprocessing a photo of {size}", "naive Pillow and numpy", f"{r['faster']:.1f} times faster, within {r['max_difference_in_255ths']:.0f}/255", "3 times")
            for size, r in results["preprocess"].items()
        ),
        ("int8, ResNet-18", "fp32", f"{results['int8']['resnet18']['faster']:.1f} times faster", "3 times"),
        *(
            (f"`{name}`, CPU", "`import numpy, onnxruntime`", f"{r['cpu_ratio']:.2f}x, {r['ours_peak_mib']:.0f} MiB", "0.4x")
            for name, r in results["help"].items()
        ),
        ("a process that classifies one JPEG, CPU", "raw script", f"{results['process']['cpu_ratio']:.2f}x", "1.2x"),
        ("the same, peak memory", "raw script", f"{results['process']['memory_ratio']:.2f}x ({results['process']['ours_peak_mib']:.0f} MiB)", "1.1x"),
        ("`zoo export` with all gates, CPU", "bare export and one evaluation pass", f"{results['export']['cpu_ratio']:.2f}x ({results['export']['ours_peak_mib']:.0f} MiB)", "1.3x"),
        ("training in fp32, images/s", "bare loop in fp32", f"{train['same_precision_ratio']:.2f}x", "0.95x"),
        ("training as it comes (bf16), images/s", "bare loop in fp32", f"{train['default_against_bare_fp32']:.2f}x", "faster"),
        ("the same", "bare loop in bf16, channels-last", f"{train['default_against_bare_bf16']:.2f}x", "0.95x"),
        ("30 head epochs on cached features, whole command", "30 forward passes", f"{results['features']['faster']:.0f} times faster", "faster"),
        *(
            (f"{r['what']}: {r['ours_ms']:.2f} ms", r["against"], f"{r['faster']:.0f} times faster", "1 ms")
            for r in results.get("postprocess", {"rows": []})["rows"]
            if ("supervision" in r["against"] and "to objects" in r["what"]) or "argmax" in r["against"]
        ),
        *(
            ("a photo of 24 megapixels enlarged twice, peak memory", "decoded image and result", f"{r['memory_ratio']:.2f}x ({r['ours_mib']:.0f} MiB)", "2x")
            for r in [results.get("enlarge")] if r
        ),
    ]  # fmt: skip
    lines = ["| what | against | measured | goal |", "|---|---|---|---|", *(f"| {' | '.join(r)} |" for r in rows)]
    facts = results["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in facts["versions"].items())
    return "\n".join(
        [
            *lines,
            "",
            f"{facts['processor']}, {facts['cores']} cores, shared; {facts['system']}, Python {facts['python']}, {versions}.",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(BENCHMARKS)} (default: all)")
    parser.add_argument("--keep", type=Path, help="folder for bundles and runs, kept for the next time")
    parser.add_argument("--table", action="store_true", help="print the last results as Markdown; measure nothing")
    arguments = parser.parse_args()
    if arguments.table:
        print(markdown(json.loads(RESULTS.read_text())))
        return
    unknown = set(arguments.names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"unknown benchmark {', '.join(sorted(unknown))}: there are {', '.join(BENCHMARKS)}")
    from zoo.machine import machine

    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results["machine"] = machine()
    with tempfile.TemporaryDirectory() as temporary:
        shop = Workshop(arguments.keep or Path(temporary))
        shop.folder.mkdir(parents=True, exist_ok=True)
        for name in arguments.names or BENCHMARKS:
            print(f"{name} …", flush=True)
            results[name] = BENCHMARKS[name](shop)
            print(json.dumps(results[name], indent=2), flush=True)
            RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
