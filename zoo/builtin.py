"""What the core itself registers, through the same door as a stranger's plugin. Records only; imports nothing heavy."""

from __future__ import annotations

from .specs import Command, DatasetFormat, Runtime, Spec, Task

# The one table of tolerances; the reason stands beside each number. Tasks add what their outputs need.
FP32 = {
    # error in units of PyTorch's own float32 error against float64: honest exports measure 0.9 to 2.5
    "numbers_units": 8.0,
    # floor of the unit, as a share of the output's spread: below it float32 rounding is all there is
    "numbers_floor": 2e-6,
    # the numeric gate is the strict one for fp32; this one asks whether enough real images were seen
    "accuracy_drop": 0.02,
    # candidate p50 / PyTorch p50, upper end of its confidence interval
    "latency_ratio": 1.10,
    # golden vectors on another machine: share of the output's spread
    "golden": 2e-4,
    # golden vectors in another library's engine of the same graph, which may choose Winograd's convolutions and sums of
    # another order; TF32 is off unless it was asked for
    "engine": 2e-3,
}
FP16 = {
    # half precision has 11 bits; through some tens of layers 1 % of the spread is the usual worst case
    "numbers_rms": 0.01,
    "accuracy_drop": 0.02,
    "latency_ratio": 1.10,
    "golden": 0.01,
    # an engine rounds elsewhere than ONNX Runtime does, so that the two errors have nothing to do with each other: root 2
    # times what each may be from PyTorch
    "engine": 0.0142,
}
BF16 = {
    # 8 bits in place of 11: each rounding is 8 times as coarse
    "numbers_rms": 0.08,
    "accuracy_drop": 0.02,
    "latency_ratio": 1.10,
    "golden": 0.08,
    "engine": 0.113,
}
INT8 = {
    # RMS error over the RMS of the reference: post-training int8 measures 0.02 to 0.15 on honest networks
    "numbers_rms": 0.25,
    "accuracy_drop": 0.02,
    "latency_ratio": 1.10,
    # the same integers on the same kernels; other kernels may round one step differently
    "golden": 0.005,
    # a value on the edge between two steps falls to the other side, and all that follows is rounded anew: root 2 times
    # what each may be from PyTorch (measured: MobileNetV2 11 % from it, two ways of running one graph 16 % apart)
    "engine": 0.354,
}

CLASSIFY = Task(
    name="classify",
    summary="One label for a whole image",
    load="zoo.tasks.classify:Classify",
    outputs=("logits", "scores"),
    trainer="zoo.train.classify:ClassifyTrainer",
    tolerances={"fp32": FP32, "fp16": FP16, "bf16": BF16, "int8": INT8, "mixed": INT8},
)

SEGMENT = Task(
    name="segment",
    summary="A class for every pixel",
    load="zoo.tasks.segment:Segment",
    outputs=("logits", "classes"),
    trainer="zoo.train.segment:SegmentTrainer",
    tolerances={
        # pixels on the border between two classes, whose logits are equal to within rounding, may fall either way
        "fp32": {**FP32, "agreement": 0.9995},
        "fp16": {**FP16, "agreement": 0.99},
        "bf16": {**BF16, "agreement": 0.95},
        # objects' borders move by a pixel; what that does to the answer is the accuracy gate's to say
        "int8": {**INT8, "agreement": 0.9},
        "mixed": {**INT8, "agreement": 0.9},
    },
)

# Of detectors that choose their rows by score (two stages, queries): the share of the rows that matter which must have a
# partner in the reference's. int8 Faster R-CNN and RT-DETRv2, trained on 252 scenes, have 0.992 and 0.998; half of them
# in fp16 0.9997 and 1. What is left is an object in twenty, and the accuracy gate says whether it is missed.
ROWS_PAIRED = 0.95
# ... and the share of the images in which float32 rounding may choose another row: none of 108 were measured, one in a
# hundred is known at 512 pixels. A fault of the export is in every image.
IMAGES_TIED = 0.1

DETECT = Task(
    name="detect",
    summary="Boxes around objects, each with a label",
    load="zoo.tasks.detect:Detect",
    outputs=("boxes", "scores"),
    trainer="zoo.train.detect:DetectTrainer",
    tolerances={
        # runtimes compute a sigmoid to about 1e-7 of 1, however small the score: an untrained detector's scores are all
        # alike, and their spread says nothing of that
        "fp32": {**FP32, "numbers_least": 3e-8, "rows_paired": 0.99, "images_tied": IMAGES_TIED},
        "fp16": {**FP16, "rows_paired": 0.98},
        "bf16": {**BF16, "rows_paired": ROWS_PAIRED},
        "int8": {**INT8, "rows_paired": ROWS_PAIRED},
        "mixed": {**INT8, "rows_paired": ROWS_PAIRED},
    },
)

# PSNR in hundredths of dB (0.001 is 0.1 dB). Rounding to pixels alone costs a restored image 0.001 dB; half a decibel is
# what a reader begins to see, and about what a generation of networks gains.
DROPS = {"fp32": 0.0005, "fp16": 0.001, "bf16": 0.003, "int8": 0.005, "mixed": 0.005}
# PSNR in dB between candidate and reference, of the worst image: fp32 may move a value to the next of 255 here and there
# (1 in 16 would be 60 dB); half precision is good to 11 bits, of which pixels need 8; bf16 to 8; int8 has 256 steps in each
# layer, and 28 dB is where its grain begins to be seen
PIXELS = {"fp32": 60.0, "fp16": 48.0, "bf16": 32.0, "int8": 28.0, "mixed": 28.0}
# share of the trained network's KID that an artefact's may be worse by, where no image is the right one
KID_SHARE = 0.1
PICTURES = {
    precision: {
        **table,
        "accuracy_drop": DROPS[precision],
        "pixels_psnr": PIXELS[precision],
        "quality_share": KID_SHARE,
    }
    for precision, table in (("fp32", FP32), ("fp16", FP16), ("bf16", BF16), ("int8", INT8), ("mixed", INT8))
}

GENERATE = Task(
    name="generate",
    summary="Images out of random numbers",
    load="zoo.tasks.generate:Generate",
    outputs=("output",),
    trainer="zoo.train.pictures:GenerateTrainer",
    tolerances=PICTURES,
)

RESTORE = Task(
    name="restore",
    summary="A better image of a small, noisy or damaged one",
    load="zoo.tasks.restore:Restore",
    outputs=("output",),
    trainer="zoo.train.pictures:RestoreTrainer",
    tolerances=PICTURES,
)

TRANSLATE = Task(
    name="translate",
    summary="An image turned into one of another kind",
    load="zoo.tasks.translate:Translate",
    outputs=("output",),
    trainer="zoo.train.pictures:TranslateTrainer",
    tolerances=PICTURES,
)

TASKS = (CLASSIFY, SEGMENT, DETECT, GENERATE, RESTORE, TRANSLATE)

RUNTIMES = (
    Runtime(
        name="tensorrt",
        summary="NVIDIA TensorRT 8.6 to 11 on a GPU; builds the engine that it runs",
        load="zoo.runtime.tensorrt.engines:open_tensorrt",
        probe="zoo.runtime.tensorrt.engines:probe_tensorrt",
        reads=("tensorrt",),
        requires=("tensorrt",),
        priority=50,
        install="pip install tensorrt (on a Jetson it comes with JetPack)",
    ),
    Runtime(
        name="tensorrt-rtx",
        summary="NVIDIA TensorRT-RTX on an RTX GPU",
        load="zoo.runtime.tensorrt.engines:open_rtx",
        probe="zoo.runtime.tensorrt.engines:probe_rtx",
        reads=("tensorrt",),
        requires=("tensorrt_rtx",),
        priority=40,
        install="pip install tensorrt-rtx",
    ),
    Runtime(
        name="onnxruntime-tensorrt",
        summary="ONNX Runtime with its TensorRT provider on a GPU",
        load="zoo.runtime.ort:open_tensorrt",
        probe="zoo.runtime.ort:probe_tensorrt",
        reads=("tensorrt",),
        requires=("onnxruntime",),
        priority=30,
        install="pip install onnxruntime-gpu 'tensorrt<11'",
    ),
    Runtime(
        name="onnxruntime-cuda",
        summary="ONNX Runtime with its CUDA provider on a GPU",
        load="zoo.runtime.ort:open_cuda",
        probe="zoo.runtime.ort:probe_cuda",
        reads=("tensorrt", "onnx"),
        requires=("onnxruntime",),
        priority=20,
        install="pip install onnxruntime-gpu",
    ),
    Runtime(
        name="onnxruntime",
        summary="ONNX Runtime on the CPU",
        load="zoo.runtime.ort:open_session",
        reads=("onnx", "tensorrt"),
        requires=("onnxruntime",),
        priority=10,
        install="pip install 'edgezoo[edge]'",
    ),
)

DATASET_FORMATS = (
    DatasetFormat(
        name="folders",
        summary="One folder a class, optionally below train/, val/ and test/",
        load="zoo.data.folders:FolderFormat",
        tasks=("classify", "generate"),
    ),
    DatasetFormat(
        name="idx",
        summary="The raw idx files of MNIST and its kin, gzipped or not",
        load="zoo.data.idx:IdxFormat",
        tasks=("classify", "generate"),
    ),
    DatasetFormat(
        name="csv",
        summary="A CSV of path,label[,split]",
        load="zoo.data.csvfile:CsvFormat",
        tasks=("classify", "generate"),
    ),
    DatasetFormat(
        name="coco",
        summary="COCO json, one file a split: boxes",
        load="zoo.data.coco:CocoFormat",
        tasks=("detect",),
    ),
    DatasetFormat(
        name="yolo",
        summary="YOLO: data.yaml, images/ and labels/ with one text file an image: boxes",
        load="zoo.data.yolo:YoloFormat",
        tasks=("detect",),
    ),
    DatasetFormat(
        name="voc",
        summary="Pascal VOC: Annotations/*.xml beside JPEGImages/: boxes",
        load="zoo.data.voc:VocFormat",
        tasks=("detect",),
    ),
    DatasetFormat(
        name="csv-boxes",
        summary="A CSV of path,xmin,ymin,xmax,ymax,label[,split]",
        load="zoo.data.boxcsv:BoxCsvFormat",
        tasks=("detect",),
    ),
    DatasetFormat(
        name="voc-segment",
        summary="Pascal VOC: SegmentationClass/ beside JPEGImages/: class maps",
        load="zoo.data.masks:VocMaskFormat",
        tasks=("segment",),
    ),
    DatasetFormat(
        name="masks",
        summary="Images and masks in two folders, one mask an image",
        load="zoo.data.masks:MaskFormat",
        tasks=("segment",),
    ),
    DatasetFormat(
        name="coco-segment",
        summary="COCO json, one file a split: outlines drawn as class maps",
        load="zoo.data.coco:CocoMaskFormat",
        tasks=("segment",),
    ),
    DatasetFormat(
        name="yolo-segment",
        summary="YOLO with outlines instead of boxes, drawn as class maps",
        load="zoo.data.yolo:YoloMaskFormat",
        tasks=("segment",),
    ),
    DatasetFormat(
        name="pairs",
        summary="Pairs of images: two folders (LR and HR, input and target, …) with the same names, or _LR and _HR in one",
        load="zoo.data.pictures:PairsFormat",
        tasks=("restore", "translate"),
    ),
    DatasetFormat(
        name="side-by-side",
        summary="Two images of equal size in each file: from the left the right one is made",
        load="zoo.data.pictures:SideBySideFormat",
        tasks=("translate", "restore"),
    ),
    DatasetFormat(
        name="side-by-side-ba",
        summary="Two images of equal size in each file: from the right the left one is made",
        load="zoo.data.pictures:SideBySideBackFormat",
        tasks=("translate", "restore"),
    ),
    DatasetFormat(
        name="unpaired",
        summary="Images of two domains: trainA/ and trainB/, perhaps testA/ and testB/",
        load="zoo.data.pictures:UnpairedFormat",
        tasks=("translate",),
    ),
    DatasetFormat(
        name="images",
        summary="Images without labels anywhere below a folder, optionally below train/, val/ and test/",
        load="zoo.data.pictures:ImagesFormat",
        tasks=("generate", "restore", "translate"),
    ),
)

COMMANDS = (
    Command(name="list", group="find", summary="List the architectures", load="zoo.cli.find:list_command"),
    Command(name="show", group="find", summary="Show one architecture", load="zoo.cli.find:show_command"),
    Command(
        name="plugins",
        group="find",
        summary="Show the plugins and what is wrong with any",
        load="zoo.cli.find:plugins_command",
    ),
    Command(
        name="doctor",
        group="find",
        summary="Say what this machine can train, export and run",
        load="zoo.cli.doctor:command",
    ),
    Command(
        name="data",
        group="find",
        summary="Inspect a data set, or convert it to another format",
        load="zoo.cli.data:command",
    ),
    Command(
        name="finetune",
        group="train",
        summary="Adapt a network to your images by transfer learning",
        load="zoo.cli.finetune:command",
    ),
    Command(
        name="evaluate",
        group="train",
        summary="Measure a checkpoint or a bundle on a data set",
        load="zoo.cli.evaluate:command",
    ),
    Command(
        name="verify",
        group="prove",
        summary="Judge a bundle: numbers, accuracy, latency",
        load="zoo.cli.verify:command",
    ),
    Command(
        name="selftest",
        group="prove",
        summary="Replay a bundle's golden vectors on this machine",
        load="zoo.cli.selftest:command",
    ),
    Command(
        name="bench", group="prove", summary="Measure a bundle's latency on this machine", load="zoo.cli.bench:command"
    ),
    Command(name="run", group="run", summary="Run a bundle on images", load="zoo.cli.run:command"),
    Command(
        name="build",
        group="run",
        summary="Build a bundle's TensorRT engines on this device",
        load="zoo.cli.build:command",
    ),
    Command(name="pack", group="run", summary="Make a bundle one .zoo file", load="zoo.cli.pack:command"),
    Command(name="demo", group="find", summary="See the whole path on handwritten digits", load="zoo.cli.demo:command"),
)


SPECS: tuple[Spec, ...] = (*TASKS, *RUNTIMES, *DATASET_FORMATS, *COMMANDS)
