"""zoo-segment: the papers' figures, exact unpooling that TensorRT takes, encoders under timm's names; then the kit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")
smp = pytest.importorskip("segmentation_models_pytorch")
onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from zoo.errors import UnknownName, ZooError
from zoo.registry import get_registry
from zoo.runtime.tensorrt import api
from zoo.specs import Architecture, ImageInput
from zoo.testing import ArchitectureTests, give_signal, probe
from zoo.train.weights import fit, read_state
from zoo_export.onnx_export import to_model
from zoo_segment import plugin, segnet, unet
from zoo_segment.encoder import Encoder
from zoo_segment.unpool import FORMULATIONS

NAMES = [spec.name for spec in plugin.SPECS]
OVER_ENCODERS = ["unet", "unetplusplus", "deeplabv3plus", "fpn", "segformer"]


def build(name: str, classes: int = 3, channels: int = 3, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    spec = get_registry().get(Architecture, name)
    network: nn.Module = spec.resolve()(num_classes=classes, in_channels=channels, **{**spec.options, **options})
    return network.eval()


def small(name: str, **more: Any) -> nn.Module:
    """The network over a tiny encoder, where it has one to choose."""
    options = {"encoder": "test_efficientnet"} if name in OVER_ENCODERS else {}
    return build(name, **options, **more)


def convolutions(network: nn.Module) -> list[nn.Module]:
    return [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]


# -- what the papers say -------------------------------------------------------------------------------------------


def test_unet_has_the_published_layers_and_weights() -> None:
    network = unet.build(num_classes=2, in_channels=1)
    assert len(convolutions(network)) == 23  # section 2
    pairs = [(1, 64), (64, 128), (128, 256), (256, 512), (512, 1024)]  # figure 1, down
    pairs += [(1024, 512), (512, 256), (256, 128), (128, 64)]  # and up again, after joining
    double = sum(9 * i * o + o + 9 * o * o + o for i, o in pairs)
    up = sum(4 * i * i // 2 + i // 2 for i in (1024, 512, 256, 128))
    assert sum(p.numel() for p in network.parameters()) == double + up + 64 * 2 + 2 == 31_030_658


def test_unet_keeps_the_strength_of_its_signal() -> None:
    """What the paper's initialisation is for: through 23 layers no map's mean square leaves the input's by a factor of ten."""
    torch.manual_seed(0)
    network = unet.UNet(2, 3).eval()
    seen: dict[str, float] = {}

    def note(name: str) -> Any:
        return lambda module, inputs, output: seen.update({name: float(output.square().mean())})

    for name, part in network.named_children():
        part.register_forward_hook(note(name))
    with torch.inference_mode():
        network(torch.randn(2, 3, 64, 64))
    maps = {k: v for k, v in seen.items() if k not in ("head", "pool", "dropout")}
    assert len(maps) == 13
    assert all(0.1 < square < 10 for square in maps.values()), maps


def test_segnet_is_vgg16_and_its_mirror_image() -> None:
    network = segnet.segnet(num_classes=12, in_channels=3)
    down, up = convolutions(network.encoder), convolutions(network)[13:]
    widths = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    assert [c.out_channels for c in down] == widths
    assert [c.in_channels for c in up] == widths[::-1]
    assert [c.out_channels for c in up] == [*widths[-2::-1], 12]


def test_segnet_basic_sees_what_the_paper_says() -> None:
    network = segnet.segnet_basic(num_classes=11, in_channels=3)
    field, stride = 1, 1
    for encoder in (network.encoder1, network.encoder2, network.encoder3, network.encoder4):
        field += (encoder[0].kernel_size[0] - 1) * stride
        field += stride  # the pooling's other pixel
        stride *= 2
    assert field == 106  # section 3.1: 106 x 106 pixels for one of the deepest map
    assert all(c.bias is None for c in convolutions(network)[:-1])
    # table 1 prints 1.425 M for eleven classes
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(1.425e6, rel=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_and_macs_are_recomputed(name: str) -> None:
    spec = get_registry().get(Architecture, name)
    with torch.device("meta"):
        network = build(name, 10).requires_grad_(False)
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), counter:
            network(torch.empty(1, *spec.input.shape))
    assert sum(p.numel() for p in network.parameters()) == spec.parameters
    assert counter.get_total_flops() // 2 == spec.macs


# -- unpooling -----------------------------------------------------------------------------------------------------


class Pair(nn.Module):
    """Pools, turns the signs of the maxima, and puts them back: (N, C, H, W) to (N, C, H, W) and (N, C, H/2, W/2)."""

    def __init__(self, formulation: str) -> None:
        super().__init__()
        pool, unpool = FORMULATIONS[formulation]
        self.pool, self.unpool = pool(), unpool()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pooled, winners = self.pool(x)
        return self.unpool(-pooled, winners), pooled


class Plain(nn.Module):
    """The same with PyTorch's own indices."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pooled, indices = F.max_pool2d(x, 2, return_indices=True)
        return F.max_unpool2d(-pooled, indices, 2), pooled


CHANNELS, HEIGHT, WIDTH = 5, 12, 18


def windows(kind: str, count: int = 3) -> Tensor:
    """(count, C, H, W) float32."""
    torch.manual_seed(0)
    shape = (count, CHANNELS, HEIGHT, WIDTH)
    if kind == "ties":
        return torch.randint(-2, 3, shape).float()
    if kind == "flat":
        return torch.full(shape, -1.5)
    if kind == "ramps":  # neighbours that differ by one unit in the last place, and by nothing
        return torch.nextafter(torch.ones(shape), torch.randint(0, 3, shape).float())
    values = torch.randn(shape)
    return values.relu() if kind == "rectified" else values


KINDS = ["ties", "flat", "ramps", "rectified", "floats"]


def test_the_ties_are_ties() -> None:
    x = windows("ties")
    maxima = F.max_pool2d(x, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert ((x == maxima).sum() / maxima.numel() * 4) > 1.3  # more winners than windows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_unpooling_is_pytorchs_own_to_the_last_bit(formulation: str, kind: str, dtype: torch.dtype) -> None:
    x = windows(kind).to(dtype)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    found, expected = Pair(formulation)(ours), Plain()(theirs)
    assert found[0].dtype == dtype
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    push = torch.randn(x.shape, dtype=dtype)
    found[0].backward(push)
    expected[0].backward(push)
    assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_unpooling_takes_other_memory_layouts(formulation: str) -> None:
    x = windows("ties").to(memory_format=torch.channels_last)
    assert torch.equal(Pair(formulation)(x)[0], Plain()(x)[0])


@pytest.fixture(scope="module")
def graphs() -> dict[str, onnx.ModelProto]:
    """The pairs as ONNX models, as the zoo's exporter makes them."""
    spec = ImageInput(height=HEIGHT, width=WIDTH).with_channels(CHANNELS)
    modules = {**{name: Pair(name) for name in FORMULATIONS}, "plain": Plain()}
    return {name: to_model(module.eval(), spec, ("restored", "pooled"))[0] for name, module in modules.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_unpooling_is_exact_in_onnx_runtime(formulation: str, kind: str, graphs: dict[str, onnx.ModelProto]) -> None:
    session = ort.InferenceSession(graphs[formulation].SerializeToString())
    for count in (1, 3):
        x = windows(kind, count)
        found = session.run(["restored", "pooled"], {"image": x.numpy()})
        assert all(np.array_equal(a, b.numpy()) for a, b in zip(found, Plain()(x), strict=True))


@pytest.fixture(scope="module")
def tensorrt() -> api.Library:
    library = api.find("tensorrt-rtx")
    if library is None:
        pytest.skip("no tensorrt_rtx, whose parser and builder are asked here: pip install tensorrt-rtx")
    return library


def engine(library: api.Library, model: onnx.ModelProto) -> api.Built:
    shape = tuple(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:])
    return api.build(library, model.SerializeToString(), profile={"image": ((1, *shape), (2, *shape), (4, *shape))})


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_tensorrt_builds_the_unpooling(
    formulation: str, graphs: dict[str, onnx.ModelProto], tensorrt: api.Library
) -> None:
    built = engine(tensorrt, graphs[formulation])
    assert built, built.reason


def test_tensorrt_refuses_pooling_indices(graphs: dict[str, onnx.ModelProto], tensorrt: api.Library) -> None:
    """Why the formulations exist; the day this fails, PyTorch's own pair can be exported."""
    assert {"MaxPool", "ScatterND"} <= {node.op_type for node in graphs["plain"].graph.node}
    built = engine(tensorrt, graphs["plain"])
    assert not built
    assert {c.operator for c in built.verdict.complaints} == {"MaxPool"}


def test_tensorrt_refuses_maxunpool(tensorrt: api.Library) -> None:
    helper, kind = onnx.helper, onnx.TensorProto
    size = [1, 2, 3, 4]
    node = helper.make_node("MaxUnpool", ["image", "indices"], ["restored"], kernel_shape=[2, 2], strides=[2, 2])
    graph = helper.make_graph(
        [node],
        "unpool",
        [helper.make_tensor_value_info("image", kind.FLOAT, size), helper.make_tensor_value_info("indices", 7, size)],
        [helper.make_tensor_value_info("restored", kind.FLOAT, [1, 2, 6, 8])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    assert not api.build(tensorrt, model.SerializeToString())


def test_tensorrt_builds_segnet(tensorrt: api.Library) -> None:
    spec = ImageInput(height=32, width=48)
    model, _ = to_model(give_signal(build("segnet-basic"), spec), spec, ("logits",))
    built = engine(tensorrt, model)
    assert built, built.reason


def test_both_formulations_make_the_same_segnet() -> None:
    one, two = (build("segnet-basic", unpooling=name) for name in ("strided", "mask"))
    x = probe(ImageInput(height=64, width=32), 2)
    with torch.inference_mode():
        assert torch.equal(one(x), two(x))
    with pytest.raises(UnknownName, match="unknown unpooling 'indices': there are: mask, strided"):
        build("segnet-basic", unpooling="indices")


# -- every network -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_logits_have_the_inputs_size_for_1_to_16_channels(name: str) -> None:
    for channels, height, width in ((1, 32, 64), (16, 96, 32)):
        network = small(name, channels=channels)
        x = torch.randn(2, channels, height, width)
        with torch.inference_mode():
            assert network(x).shape == network.train()(x).shape == (2, 3, height, width)


@pytest.mark.parametrize(
    ("name", "title", "halvings", "divisor"),
    [
        ("unet-classic", "U-Net", 4, 16),
        ("segnet", "SegNet", 5, 32),
        ("segnet-basic", "SegNet-Basic", 4, 16),
        ("unetplusplus", r"U-Net\+\+", 5, 32),
        ("deeplabv3plus", r"DeepLabV3\+", 4, 16),
        ("fpn", "FPN", 5, 32),
        ("segformer", "SegFormer", 2, 4),
    ],
)
def test_sizes_that_do_not_divide_are_told_the_next_that_does(
    name: str, title: str, halvings: int, divisor: int
) -> None:
    network = small(name)
    told = (
        rf"input is 3x250x256; {title} halves it {halvings} times, so H and W must divide by {divisor}: "
        rf"pad to {250 + -250 % divisor}x256$"
    )
    with pytest.raises(ZooError, match=told):
        network(torch.zeros(1, 3, 250, 256))


def test_unet_over_an_encoder_takes_any_size() -> None:
    with torch.inference_mode():
        assert small("unet")(torch.randn(1, 3, 51, 70)).shape == (1, 3, 51, 70)


@pytest.mark.parametrize("name", ["segnet", "segnet-basic", "unet"])
def test_learns_in_bfloat16(name: str) -> None:
    """A few steps on one batch, from nothing: the loss falls, and nothing is lost to the short mantissa."""
    network = small(name, classes=2).train()
    x = probe(ImageInput(height=32, width=32), 4)
    target = (x.mean(dim=1) > 0).long()  # the bright half
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
    losses = []
    for _ in range(8):
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(x)
        loss = F.cross_entropy(logits.float(), target)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0], losses


# -- encoders ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "encoder",
    [
        "mobilenetv2_100",
        "mobilenetv3_small_050",
        "efficientnet_b0",
        "resnet18",
        "regnetx_002",
        "densenet121",
        "hgnetv2_b0",
        "convnext_atto",  # begins at stride 4, as the next three
        "swin_tiny_patch4_window7_224",
        "pvt_v2_b0",
        "mambaout_femto",
        "vgg11_bn",  # begins at stride 1
        "hardcorenas_a",
    ],
)
def test_an_encoders_weights_have_timms_names(encoder: str) -> None:
    with torch.device("meta"):
        ours = Encoder(encoder, 3, img_size=(224, 224))
        theirs = timm.create_model(encoder).state_dict()
        maps = ours.eval()(torch.empty(2, 3, 224, 224))
    state = ours.model.state_dict()
    assert all(k in theirs and theirs[k].shape == v.shape for k, v in state.items())
    assert len(state) > 0.75 * len(theirs)
    assert [m.shape for m in maps] == [(2, c, 224 >> i, 224 >> i) for i, c in enumerate(ours.channels)]
    assert ours.channels[0] == 3
    assert all(ours.channels[2:])


@pytest.mark.parametrize("name", OVER_ENCODERS)
@pytest.mark.parametrize("encoder", ["mobilenetv2_100", "resnet18"])
def test_is_what_segmentation_models_pytorch_makes(name: str, encoder: str) -> None:
    """The same names of weights, and the same values to the last bit."""
    kind = {
        "unet": smp.Unet,
        "unetplusplus": smp.UnetPlusPlus,
        "deeplabv3plus": smp.DeepLabV3Plus,
        "fpn": smp.FPN,
        "segformer": smp.Segformer,
    }[name]
    ours = build(name, 5, 4, encoder=encoder)
    theirs = kind(f"tu-{encoder}", encoder_weights=None, in_channels=4, classes=5).eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(1, 4, 64, 96)
    with torch.inference_mode():
        assert torch.equal(ours(x), theirs(x))


def test_a_pyramid_that_begins_at_stride_4_works_with_every_decoder() -> None:
    for name in OVER_ENCODERS:
        network = build(name, encoder="test_convnext")
        assert network.encoder.channels[1] == 0
        network(torch.randn(2, 3, 64, 64)).sum().backward()
        assert not [n for n, p in network.named_parameters() if p.grad is None]


def test_encoders_that_do_not_suit_are_told_so_in_one_line() -> None:
    with pytest.raises(UnknownName, match=r"unknown encoder 'mobilenetv2': did you mean .*mobilenetv2_100"):
        build("unet", encoder="mobilenetv2")
    with pytest.raises(ZooError, match=r"'test_vit' has feature maps at strides 16; a decoder needs 4, 8, 16 and 32"):
        build("unet", encoder="test_vit")
    with pytest.raises(ZooError, match="'hgnetv2_b0' cannot be dilated to stride 16"):
        build("deeplabv3plus", encoder="hgnetv2_b0")
    with torch.device("meta"), pytest.raises(ZooError, match=r"a map of 61x61 from one of 128x128; FPN needs exact"):
        build("fpn", encoder="inception_v3")(torch.empty(1, 3, 128, 128))


def test_segnets_encoder_takes_vgg16s_weights() -> None:
    with torch.device("meta"):
        ours = segnet.segnet(num_classes=2, in_channels=3).get_submodule("encoder").state_dict()
        theirs = timm.create_model("vgg16_bn").state_dict()
    assert len(ours) == 13 * 7
    assert all(theirs[k].shape == v.shape for k, v in ours.items())


@pytest.fixture(scope="module")
def mobilenetv2(assets: Path) -> Path:
    return assets / "weights" / "mobilenetv2_100.imagenet1k.safetensors"


@pytest.mark.assets
@pytest.mark.parametrize("name", OVER_ENCODERS)
@pytest.mark.parametrize("channels", [3, 1, 16])
def test_real_weights_fill_the_whole_encoder(name: str, channels: int, mobilenetv2: Path) -> None:
    spec = get_registry().get(Architecture, name)
    network = build(name, 2, channels)
    state = read_state(mobilenetv2)
    fitted = fit(network, state, head=spec.head, keep_head=True, channels=channels, backbone=spec.backbone)
    own = network.get_submodule(spec.backbone).state_dict()
    assert fitted.loaded >= {f"{spec.backbone}.{k}" for k in own if not k.endswith("num_batches_tracked")}
    left = {k.partition(".")[0] for k in set(state.tensors) - set(own)}
    assert left == {"conv_head", "bn2", "classifier"}


@pytest.mark.assets
def test_the_encoder_computes_what_the_classifier_does(mobilenetv2: Path) -> None:
    state = read_state(mobilenetv2).tensors
    classifier = timm.create_model("mobilenetv2_100").eval()
    classifier.load_state_dict(dict(state), strict=False)
    network = build("unet", 2)
    network.encoder.model.load_state_dict({k: v for k, v in state.items() if k in network.encoder.model.state_dict()})
    x = probe(ImageInput(height=96, width=96), 2)
    with torch.inference_mode():
        blocks = classifier.blocks(classifier.bn1(classifier.conv_stem(x)))
        assert torch.equal(network.encoder(x)[-1], blocks)
    assert float(blocks.std()) > 0.1


# -- the conformance kit -------------------------------------------------------------------------------------------


class TestUNetClassic(ArchitectureTests):
    name = "unet-classic"
    size = 32


# SegNet steps where two pixels of a window are equal but for rounding, and the more windows the likelier that is
class TestSegNet(ArchitectureTests):
    name = "segnet"
    size = 32


class TestSegNetBasic(ArchitectureTests):
    name = "segnet-basic"
    size = 32


class TestUNet(ArchitectureTests):
    name = "unet"
    size = 64
    options = {"encoder": "test_efficientnet"}


class TestUNetPlusPlus(ArchitectureTests):
    name = "unetplusplus"
    size = 64
    options = {"encoder": "test_efficientnet"}


class TestDeepLabV3Plus(ArchitectureTests):
    name = "deeplabv3plus"
    size = 64
    options = {"encoder": "test_efficientnet"}


class TestFPN(ArchitectureTests):
    name = "fpn"
    size = 64
    options = {"encoder": "test_efficientnet"}


class TestSegFormer(ArchitectureTests):
    name = "segformer"
    size = 64
    options = {"encoder": "test_efficientnet"}
