"""What zoo-classic registers. Records only: torch is imported when a network is built."""

from __future__ import annotations

from collections.abc import Iterable

from zoo import Architecture, ImageInput, Spec, hookimpl

LENET5 = Architecture(
    name="lenet5",
    summary="LeNet-5 with ReLU and max-pooling: handwritten digits and other small grey images",
    load="zoo_classic.lenet:build",
    task="classify",
    # mean and std are those of MNIST's training pixels
    input=ImageInput(
        height=28,
        width=28,
        channels=1,
        color="L",
        resize="squash",
        interpolation="bilinear",
        mean=(0.1307,),
        std=(0.3081,),
    ),
    head="head",
    license="Apache-2.0",
    paper="http://yann.lecun.com/exdb/publis/pdf/lecun-98.pdf",
    aliases=("lenet",),
    parameters=61_706,
    macs=416_520,
)


@hookimpl
def zoo_register() -> Iterable[Spec]:
    return (LENET5,)
