"""What zoo-gan registers. Records only: torch is imported when a network is built."""

from __future__ import annotations

from collections.abc import Iterable

from zoo import Architecture, ImageInput, Spec, hookimpl

LATENTS = ImageInput.latent(100)
# how the images that it learns from are brought to what it makes; they stay shares of white
IMAGES = ImageInput(height=32, width=32, channels=3, resize="shortest", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))

S4 = (
    Architecture(
        name="dcgan",
        summary="DCGAN: draws small images out of noise; spectral normalisation, five losses to choose from",
        load="zoo_gan.dcgan:build",
        task="generate",
        input=LATENTS,
        makes=IMAGES,
        classes=False,
        head="",
        license="Apache-2.0",
        paper="https://arxiv.org/abs/1511.06434",
        parameters=1_731_908,
        macs=17_973_248,
    ),
    Architecture(
        name="dcgan-conditional",
        summary="DCGAN that is told a class to draw, with a projection discriminator",
        load="zoo_gan.dcgan:build",
        task="generate",
        input=LATENTS,
        makes=IMAGES,
        classes=True,
        head="generator.classes,discriminator.classes",
        license="Apache-2.0",
        paper="https://arxiv.org/abs/1802.05637",
        aliases=("cdcgan",),
        parameters=2_145_068,
        macs=18_383_848,
    ),
)


PLAIN = ImageInput(height=64, width=64, resize="crop", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
"""Shares of white as they are. The size is a sample: these networks take any."""

SRRESNET = Architecture(
    name="srresnet",
    summary="SRResNet, super-resolution x2 x3 x4, without batch norm; eight blocks of 32 channels train in minutes",
    load="zoo_gan.srresnet:build",
    task="restore",
    input=PLAIN,
    head="",
    classes=False,
    license="Apache-2.0",
    paper="https://arxiv.org/abs/1609.04802",
    options={"scale": 2, "blocks": 8, "width": 32},
    parameters=209_805,
    macs=951_975_936,
)
SRGAN = Architecture(
    name="srgan",
    summary="SRGAN, SRResNet trained against a critic with a perceptual loss, x2 x3 x4",
    load="zoo_gan.srresnet:build_gan",
    task="restore",
    input=PLAIN,
    head="",
    classes=False,
    license="Apache-2.0",
    paper="https://arxiv.org/abs/1609.04802",
    options={"scale": 4, "blocks": 8, "width": 32, "critic_width": 32},
    parameters=1_552_079,
    macs=1_938_161_664,
)
ESRGAN = Architecture(
    name="esrgan",
    summary="ESRGAN (RRDBNet), x1 x2 x3 x4; takes the weights of ESRGAN, BSRGAN and Real-ESRGAN",
    load="zoo_gan.esrgan:build",
    task="restore",
    input=PLAIN,
    head="",
    classes=False,
    license="Apache-2.0",
    paper="https://arxiv.org/abs/1809.00219",
    aliases=("rrdbnet",),
    options={"scale": 4},
    parameters=21_911_556,
    macs=73_428_369_408,
)
CARN_M = Architecture(
    name="carn-m",
    summary="CARN-M, a quarter of a million weights, x2 x3 x4; takes the published weights",
    load="zoo_gan.carn:build_mobile",
    task="restore",
    input=PLAIN,
    head="",
    classes=False,
    license="Apache-2.0",
    paper="https://arxiv.org/abs/1803.08664",
    options={"scale": 2},
    parameters=257_051,
    macs=1_621_020_672,
)
CARN = Architecture(
    name="carn",
    summary="CARN, cascading residual blocks, x2 x3 x4; takes the published weights",
    load="zoo_gan.carn:build",
    task="restore",
    input=PLAIN,
    head="",
    classes=False,
    license="Apache-2.0",
    paper="https://arxiv.org/abs/1803.08664",
    options={"scale": 2},
    parameters=964_187,
    macs=3_961_442_304,
)
SPANDREL = Architecture(
    name="spandrel",
    summary="Whatever restoration network a file of weights is of: Real-ESRGAN, SwinIR, LaMa, NAFNet, … through spandrel",
    load="zoo_gan.foreign:build",
    task="restore",
    input=PLAIN,
    head="",
    classes=False,
    license="MIT",
)

S5 = (SRRESNET, SRGAN, ESRGAN, CARN_M, CARN, SPANDREL)

PICTURE = ImageInput(height=256, width=256, resize="squash", mean=(0.5,) * 3, std=(0.5,) * 3)
PHOTO = ImageInput(height=256, width=256, resize="crop", mean=(0.5,) * 3, std=(0.5,) * 3)
HOLES = ImageInput(
    height=256, width=256, channels=4, color="RGBA", resize="crop", mean=(0.5, 0.5, 0.5, 0.0), std=(0.5, 0.5, 0.5, 1.0)
)


def _r(name, summary, load, task, input, paper, decode, parameters=0, macs=0, aliases=()):
    return Architecture(
        name=name,
        summary=summary,
        load=load,
        task=task,
        input=input,
        head="",
        classes=False,
        license="Apache-2.0",
        paper="https://arxiv.org/abs/" + paper,
        decode=decode,
        parameters=parameters,
        macs=macs,
        aliases=aliases,
    )


S6 = (
    _r(
        "pix2pix",
        "pix2pix: a U-Net against a judge of patches, learnt from pairs of images",
        "zoo_gan.pix2pix:build",
        "translate",
        PICTURE,
        "1611.07004",
        {"multiple": 256},
        parameters=57183236,
        macs=6048186368,
    ),
    _r(
        "cyclegan",
        "CycleGAN: two residual generators and two judges, learnt from images without pairs",
        "zoo_gan.cyclegan:build",
        "translate",
        PICTURE,
        "1703.10593",
        {"multiple": 4},
        parameters=28285832,
        macs=49551507456,
    ),
    _r(
        "style",
        "Fast neural style: paints a photo in the manner of one picture",
        "zoo_gan.style:build",
        "translate",
        PHOTO,
        "1603.08155",
        {"multiple": 4},
        parameters=1679235,
        macs=10078912512,
        aliases=("fast-neural-style",),
    ),
    _r(
        "inpaint-gated",
        "Inpainting by gated convolutions against SN-PatchGAN (one stage)",
        "zoo_gan.inpaint:build_gated",
        "restore",
        HOLES,
        "1806.03589",
        {"holes": True, "multiple": 4},
        parameters=10813243,
        macs=42799202304,
    ),
    _r(
        "inpaint-partial",
        "Inpainting by a U-Net of partial convolutions",
        "zoo_gan.inpaint:build_partial",
        "restore",
        HOLES,
        "1804.07723",
        {"holes": True, "multiple": 32},
        parameters=11660931,
        macs=11573541184,
    ),
)

SPECS: tuple[Architecture, ...] = (*S4, *S5, *S6)


@hookimpl
def zoo_register() -> Iterable[Spec]:
    return SPECS
