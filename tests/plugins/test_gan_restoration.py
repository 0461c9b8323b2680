"""Super-resolution and foreign restoration networks: sizes, losses, layouts of weights, and the published figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

pytest.importorskip("spandrel")

from spandrel import architectures

from zoo.errors import CheckpointError, ZooError
from zoo.specs import ImageInput
from zoo.train.players import Batch, Rules
from zoo_gan import carn, esrgan, foreign, srresnet
from zoo_gan.restoring import Restorer

SMALL: dict[str, Callable[..., Restorer]] = {
    "srresnet": lambda **o: srresnet.build(blocks=1, width=8, **o),
    "srgan": lambda **o: srresnet.build_gan(blocks=1, width=8, critic_width=4, **o),
    "esrgan": lambda **o: esrgan.build(blocks=1, width=8, growth=4, critic_width=4, **o),
    "carn-m": carn.build_mobile,
    "carn": carn.build,
}


def contents(made: Tensor, target: Tensor) -> Mapping[str, Tensor]:
    """A perceptual loss that needs no weights: the distance of averages."""
    return {"content": (made.mean(dim=(2, 3)) - target.mean(dim=(2, 3))).abs().mean()}


def pair(network: Restorer, channels: int = 3, side: int = 16) -> Batch:
    generator = torch.Generator().manual_seed(1)
    low = torch.rand(2, channels, side, side, generator=generator)
    high = torch.rand(2, channels, side * network.scale, side * network.scale, generator=generator)
    return Batch(input=low, target=high)


# -- sizes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", SMALL)
def test_any_size_and_any_channels(name: str, scale: int) -> None:
    for channels, height, width in ((3, 17, 23), (1, 9, 8)):
        network = SMALL[name](scale=scale, in_channels=channels).eval()
        multiple = network.decode["multiple"]
        height, width = (-(-side // multiple) * multiple for side in (height, width))
        with torch.inference_mode():
            made = network(torch.rand(2, channels, height, width))
        assert made.shape == (2, channels, height * scale, width * scale)
        assert network.decode == {"scale": scale, "multiple": multiple}


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_enlarging_by_a_convolution_is_torchs(mode: str, scale: int) -> None:
    images = torch.rand(2, 3, 7, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted = nn.functional.interpolate(images, scale_factor=scale, mode=mode, align_corners=False)
    ours = srresnet.Enlarged(3, scale, mode).double()
    assert not ours.state_dict(), "nothing to be trained, and nothing to be missing in a file"
    torch.testing.assert_close(ours(images), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("skip", ["bicubic", "bilinear", "nearest"])
def test_srresnet_starts_from_the_enlarged_input(skip: str) -> None:
    torch.manual_seed(0)
    low = torch.rand(1, 3, 12, 12)
    network = srresnet.build(blocks=2, width=16, scale=3, skip=skip).eval()
    with torch.inference_mode():
        near = (network(low) - nn.functional.interpolate(low, scale_factor=3, mode=skip)).abs().mean()
        far = srresnet.build(blocks=2, width=16, scale=3, skip="none").eval()(low).sub(0.5).abs().mean()
    assert near < 0.05 < far


def test_batch_norm_is_an_option() -> None:
    kinds = [{type(m) for m in srresnet.build(blocks=1, norm=norm).generator.modules()} for norm in (False, True)]
    assert [nn.BatchNorm2d in kind for kind in kinds] == [False, True]


def test_esrgan_folds_the_input_of_small_scales() -> None:
    network = SMALL["esrgan"](scale=1)
    assert network.decode == {"scale": 1, "multiple": 4}
    assert network.generator.conv_first.weight.shape[1] == 48
    with pytest.raises(ZooError, match=r"input is 3x18x20; .* pad to 20x20"):
        network(torch.rand(1, 3, 18, 20))
    assert SMALL["esrgan"](scale=2, unshuffle=1).decode["multiple"] == 1


@pytest.mark.parametrize("name", SMALL)
def test_a_scale_that_is_not_there_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(ZooError, match=r"scale=5: .* choose one of them") as error:
        SMALL[name](scale=5)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: srresnet.build(skip="lanczos"), "skip=lanczos"),
        (lambda: srresnet.build(ends=4), "ends=4"),
        (lambda: srresnet.build(blocks=0), "blocks=0"),
        (lambda: carn.build(group=5), "group=5"),
        (lambda: esrgan.build(scale=3, unshuffle=2), "unshuffle=2: scale=3 goes with 1"),
        (lambda: esrgan.build(critic="patch"), "critic=patch"),
        (lambda: esrgan.build(growth=0), "growth=0"),
    ],
)
def test_impossible_options_are_refused(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(ZooError, match=words):
        call()


# -- turns -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_gradients_of_every_loss_reach_every_parameter_of_the_player_alone(name: str) -> None:
    network = SMALL[name](scale=2).train()
    batch = pair(network)
    for loss in network.losses:
        rules = Rules(loss=loss, perceptual=contents, augment="color,translation")
        assert network.needs_perceptual(loss) == ("perceptual" in loss)
        shared: dict[str, Any] = {}
        for player in network.players:
            if not network.takes_turn(player, 0, rules):
                assert player == "discriminator"
                assert "adversarial" not in loss
                continue
            network.zero_grad()
            turn = network.play(player, batch, rules, shared)
            assert set(turn.losses) == ({"adversarial"} if player == "discriminator" else set(loss.split("+")))
            torch.stack(list(turn.losses.values())).sum().backward()
            moved = {id(p) for part in network.parts(player) for p in part.parameters()}
            for key, parameter in network.named_parameters():
                assert (parameter.grad is not None) == (id(parameter) in moved and parameter.requires_grad), (loss, key)
            if player == "discriminator":
                assert 0 <= float(turn.figures["accuracy"]) <= 1


@pytest.mark.parametrize("critic", ["vgg", "unet"])
def test_a_critic_takes_patches_of_any_size_and_learns_to_tell(critic: str) -> None:
    torch.manual_seed(0)
    network = esrgan.build(blocks=1, width=8, growth=4, critic=critic, critic_width=8, scale=2).train()
    rules = Rules(loss="l1+adversarial", freeze=1)
    optimizer = torch.optim.Adam(network.discriminator.parameters(), lr=1e-3)
    batch = pair(network, side=12)  # its targets are noise; what is made is smooth
    first = {k: v.clone() for k, v in network.discriminator.layers[0].state_dict().items()}
    before = network.play("discriminator", batch, rules, {}).losses["adversarial"]
    for _ in range(25):
        optimizer.zero_grad()
        network.play("discriminator", batch, rules, {}).losses["adversarial"].backward()
        optimizer.step()
    turn = network.play("discriminator", batch, rules, {})
    assert turn.losses["adversarial"] < before / 2
    assert turn.figures["accuracy"] > 0.9
    assert all(torch.equal(first[k], v) for k, v in network.discriminator.layers[0].state_dict().items()), "frozen"
    network.play("discriminator", pair(network, side=20), rules, {})


def test_a_step_of_training_makes_the_pixels_better() -> None:
    torch.manual_seed(0)
    network = SMALL["srresnet"](scale=2)
    optimizer = torch.optim.Adam(network.generator.parameters(), lr=1e-3)
    high = torch.rand(4, 3, 8, 8).repeat_interleave(4, 2).repeat_interleave(4, 3)
    batch = Batch(input=nn.functional.avg_pool2d(high, 2), target=high)
    errors = []
    for _ in range(30):
        loss = network.play("generator", batch, Rules(loss="l1"), {}).losses["l1"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(loss.item())
    assert errors[-1] < 0.8 * errors[0]


def test_pairs_of_another_scale_are_refused_with_the_cure() -> None:
    network, batch = SMALL["srresnet"](scale=3), pair(SMALL["srresnet"](scale=4))
    with pytest.raises(ZooError, match=r"16x16 input is 64x64, and this network makes x3 of it: build it with scale=4"):
        network.play("generator", batch, Rules(loss="l1"), {})
    odd = Batch(input=batch.input, target=torch.rand(2, 3, 50, 48))
    with pytest.raises(ZooError, match="make the targets 48x48"):
        network.play("generator", odd, Rules(loss="l1"), {})
    with pytest.raises(ZooError, match="learns from pairs"):
        network.play("generator", Batch(input=batch.input), Rules(loss="l1"), {})
    with pytest.raises(ZooError, match="'hinge' is no term"):
        network.play("generator", pair(network), Rules(loss="l1+hinge"), {})
    with pytest.raises(ZooError, match="give a network to see them with"):
        network.play("generator", pair(network), Rules(loss="l1+perceptual"), {})


def test_weights_of_terms_are_the_users() -> None:
    network = SMALL["esrgan"](scale=2)
    batch = pair(network)
    usual = network.play("generator", batch, Rules(loss="l1"), {}).losses["l1"]
    tenfold = network.play("generator", batch, Rules(loss="l1", weights={"l1": 0.1}), {}).losses["l1"]
    assert torch.allclose(tenfold, usual * 10)


# -- layouts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scale", "unshuffle"), [(1, 1), (2, 1), (2, 2), (4, 1)])
def test_weights_of_the_old_layout_give_what_another_implementation_gives(scale: int, unshuffle: int) -> None:
    torch.manual_seed(0)
    folded = {"in_nc": 3 * unshuffle**2, "shuffle_factor": unshuffle} if unshuffle > 1 else {}
    old = architectures.ESRGAN.ESRGAN(num_filters=8, num_blocks=2, scale=scale * unshuffle, **folded)
    theirs = foreign.build(state=old.state_dict()).eval()
    ours = esrgan.build(blocks=2, width=8, growth=32, scale=scale, unshuffle=unshuffle).eval()
    adopted = ours.adopt(old.state_dict())
    ours.generator.load_state_dict({k.removeprefix("generator."): v for k, v in adopted.items()}, strict=True)
    image = torch.rand(1, 3, 12, 20)
    with torch.inference_mode():
        assert torch.allclose(ours(image), theirs(image), atol=1e-6)


def _bsrgan(key: str) -> str:
    for new, old in (("conv_body", "trunk_conv"), ("conv_hr", "HRconv"), ("conv_up", "upconv")):
        key = key.replace(new, old)
    return key.replace("body.", "RRDB_trunk.").replace(".rdb", ".RDB")


def test_every_layout_of_esrgan_is_read() -> None:
    ours = SMALL["esrgan"](scale=4)
    native = ours.generator.state_dict()
    own = {f"generator.{k}" for k in native}
    assert set(ours.adopt(native)) == own
    assert set(ours.adopt({f"module.{k}": v for k, v in native.items()})) == own
    assert set(ours.adopt({_bsrgan(k): v for k, v in native.items()})) == own
    assert set(ours.adopt(ours.state_dict())) == set(ours.state_dict())
    assert "generator.stranger.weight" in ours.adopt({**native, "stranger.weight": torch.zeros(1)})


def test_esrgan_says_what_other_scale_the_weights_are_of() -> None:
    weights = SMALL["esrgan"](scale=2).generator.state_dict()
    with pytest.raises(CheckpointError, match=r"fold 2x2 pixels .* scale=2, unshuffle=2; this network is scale=4"):
        SMALL["esrgan"](scale=4).adopt(weights)


def test_carn_keeps_its_own_upsampler_and_says_which_there_are() -> None:
    weights = {k: v for scale in (2, 4) for k, v in carn.build_mobile(scale=scale).generator.state_dict().items()}
    network = carn.build_mobile(scale=4)
    network.load_state_dict(network.adopt(weights), strict=True)
    with pytest.raises(CheckpointError, match="scale=3: these weights enlarge by 2, 4"):
        carn.build_mobile(scale=3).adopt(weights)


# -- spandrel ----------------------------------------------------------------------------------------------------------


def made(family: str) -> dict[str, Tensor]:
    """A state dict of random weights as the family's files hold it."""
    torch.manual_seed(0)
    network = {
        "compact": lambda: architectures.Compact.Compact(num_feat=8, num_conv=2, upscale=4),
        "swinir": lambda: architectures.SwinIR.SwinIR(
            img_size=16,
            embed_dim=12,
            depths=[2],
            num_heads=[2],
            window_size=8,
            mlp_ratio=2,
            upscale=2,
            upsampler="pixelshuffledirect",
        ),
        "dncnn": lambda: architectures.DnCNN.DnCNN(in_nc=1, out_nc=1, nc=8, nb=4),
        "lama": lambda: architectures.LaMa.LaMa(in_nc=4),
    }[family]()
    return dict(network.state_dict())


FAMILIES = {
    "compact": (3, {"scale": 4, "multiple": 1}),
    "swinir": (3, {"scale": 2, "multiple": 1}),
    "dncnn": (1, {"scale": 1, "multiple": 1}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_says_which_network_it_is_of(family: str) -> None:
    channels, decode = FAMILIES[family]
    state = made(family)
    network = foreign.build(in_channels=channels, state={f"module.{k}": v for k, v in state.items()})
    assert network.decode == decode
    network.load_state_dict(network.adopt(state), strict=True)
    again = foreign.build(in_channels=channels, state=network.state_dict())  # as a checkpoint of ours gives it back
    again.load_state_dict(again.adopt(network.state_dict()), strict=True)
    image = torch.rand(1, channels, 17, 22)
    with torch.inference_mode():
        first, second = network.eval()(image), again.eval()(image)
    assert torch.equal(first, second)
    assert first.shape == (1, channels, 17 * network.scale, 22 * network.scale)
    turn = network.train().play("generator", pair(network, channels), Rules(loss="l1"), {})
    turn.losses["l1"].backward()
    assert all(p.grad is not None for p in network.parameters())


def test_lama_paints_the_holes_alone() -> None:
    network = foreign.build(in_channels=4, state=made("lama")).eval()
    assert network.decode == {"scale": 1, "multiple": 8, "holes": True}
    image = torch.rand(1, 4, 24, 32)
    image[:, 3] = 1.0
    image[:, 3, 4:12, 8:20] = 0.0
    with torch.inference_mode():
        painted = network(image)
        image[:, :3, 4:12, 8:20] = 0.3  # what is under a hole is not looked at
        assert torch.allclose(network(image), painted, atol=1e-6)
    known = image[:, 3:].bool().expand(-1, 3, -1, -1)
    assert torch.equal(painted[known], image[:, :3][known])
    assert not torch.allclose(painted[~known], image[:, :3][~known], atol=1e-2)
    with pytest.raises(ZooError, match="input is 20x8; LaMa takes multiples of 8 from 16 on: pad to 24x16"):
        network(torch.rand(1, 4, 20, 8))


def test_what_spandrel_cannot_read_is_refused_in_one_line() -> None:
    state = made("compact")
    damaged = {k: v for k, v in state.items() if k != "body.0.bias"}
    for call, words in (
        (lambda: foreign.build(), "give a file of them with --weights"),
        (lambda: foreign.build(state={"a.weight": torch.zeros(3)}), "no restoration network of these tensors"),
        (lambda: foreign.build(in_channels=1, state=state), "takes 3 channels, and the input has 1"),
        (lambda: foreign.build(state=damaged), "do not fit it"),
    ):
        with pytest.raises(CheckpointError, match=words) as error:
            call()
        assert "\n" not in str(error.value)


# -- graphs and figures ------------------------------------------------------------------------------------------------


def _graph(network: nn.Module, channels: int = 3) -> Any:
    """An ONNX Runtime session of the generator, its height and width open."""
    onnx_export = pytest.importorskip("zoo_export.onnx_export")
    ort = pytest.importorskip("onnxruntime")
    spec = ImageInput(height=24, width=32, resize="crop", mean=(0.0,) * 3, std=(1.0,) * 3).with_channels(channels)
    model, _ = onnx_export.to_model(network.eval(), spec, ["output"], dynamic_size=True)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


@pytest.mark.parametrize(
    ("name", "options"),
    [("srresnet", {"scale": 3}), ("esrgan", {"scale": 2}), ("carn-m", {"scale": 4})],
)
def test_one_graph_takes_every_size(name: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    network = SMALL[name](**options).eval()
    run = _graph(network.generator)
    for height, width in ((24, 32), (42, 18)):
        image = torch.rand(2, 3, height, width)
        with torch.inference_mode():
            expected = network(image).numpy()
        np.testing.assert_allclose(run(image), expected, atol=1e-5)


def luma(image: np.ndarray) -> np.ndarray:
    return 16 + image.astype(np.float64) @ np.array([65.481, 128.553, 24.966]) / 255


@pytest.mark.assets
@pytest.mark.parametrize(("scale", "published"), [(2, 37.68), (3, 34.06), (4, 31.89)])
def test_carn_m_has_its_published_figures(assets: Path, scale: int, published: float) -> None:
    """Y of 8-bit images, without a rim of ``scale`` pixels: in PyTorch and in ONNX Runtime."""
    network = carn.build_mobile(scale=scale).eval()
    state = torch.load(assets / "weights" / "carn_m.x234.pth", map_location="cpu", weights_only=True)
    network.load_state_dict(network.adopt(state), strict=True)
    figures: dict[str, list[float]] = {"torch": [], "onnx": []}
    run = _graph(network.generator)
    files = sorted((assets / "set5" / f"image_SRF_{scale}").glob("*_LR.png"))
    assert len(files) == 5
    for file in files:
        low = np.asarray(Image.open(file).convert("RGB"))
        high = np.asarray(Image.open(file.with_name(file.name.replace("_LR", "_HR"))).convert("RGB"))
        image = torch.from_numpy(low.copy()).permute(2, 0, 1)[None].float() / 255
        with torch.inference_mode():
            answers = {"torch": network(image).numpy(), "onnx": run(image)}
        for who, answer in answers.items():
            pixels = np.rint(np.clip(answer[0].transpose(1, 2, 0), 0, 1) * 255)
            difference = (luma(pixels) - luma(high))[scale:-scale, scale:-scale]
            figures[who].append(10 * np.log10(255**2 / np.mean(difference**2)))
    for who, values in figures.items():
        assert np.mean(values) == pytest.approx(published, abs=0.02), who
