"""zoo-gan's instance normalisation: torch's to the digit, and as exact in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn

from zoo.registry import get_registry
from zoo.specs import Runtime
from zoo_gan.norms import InstanceNorm2d


@pytest.mark.parametrize("affine", [False, True])
def test_instance_norm_is_torchs(affine: bool) -> None:
    torch.manual_seed(0)
    ours, theirs = InstanceNorm2d(5, affine=affine).double(), nn.InstanceNorm2d(5, affine=affine).double()
    if affine:
        nn.init.normal_(ours.weight)
        nn.init.normal_(ours.bias)
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(3, 5, 9, 14, dtype=torch.float64) * 3 + 7
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-12, atol=1e-12)


def test_instance_norm_keeps_its_digits_in_onnxruntime(tmp_path: Path) -> None:
    """All but black, as masks and micrographs are: ONNX Runtime's own InstanceNormalization fails both."""
    torch.manual_seed(0)
    images = torch.full((4, 3, 128, 128), -1.0)
    images[:, :, 20:40, 30:60] += torch.rand(4, 1, 20, 30) * 0.1
    expected = InstanceNorm2d(3).double()(images.double()).numpy()
    path = tmp_path / "norm.onnx"
    torch.onnx.export(
        InstanceNorm2d(3), (images,), path, dynamo=True, dynamic_shapes={"input": {0: torch.export.Dim("n")}}
    )
    session = get_registry().get(Runtime, "onnxruntime").resolve()(path, threads=1)
    (together,) = session.run(images.numpy()).values()
    (alone,) = session.run(images[:1].numpy()).values()
    with torch.inference_mode():
        own = np.abs(InstanceNorm2d(3)(images).numpy() - expected)
    off = np.abs(together - expected)
    assert off.max() <= 2 * own.max()
    assert off.mean() <= 2 * own.mean()
    assert np.array_equal(together[:1], alone)
