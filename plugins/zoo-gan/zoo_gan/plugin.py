"""What zoo-gan registers. Records only: torch is imported when a network is built."""

from __future__ import annotations

from collections.abc import Iterable

from zoo import Architecture, ImageInput, Spec, hookimpl

# images as shares of white; the size is a sample where nothing is resized: these networks take any
PLAIN = ImageInput(height=64, width=64, resize="crop", mean=(0.0,) * 3, std=(1.0,) * 3)
IMAGES = ImageInput(height=32, width=32, resize="shortest", mean=(0.0,) * 3, std=(1.0,) * 3)
PICTURE = ImageInput(height=256, width=256, resize="squash", mean=(0.5,) * 3, std=(0.5,) * 3)
PHOTO = ImageInput(height=256, width=256, resize="crop", mean=(0.5,) * 3, std=(0.5,) * 3)
# the fourth channel says what is known
HOLES = ImageInput(
    height=256, width=256, channels=4, color="RGBA", resize="crop", mean=(0.5, 0.5, 0.5, 0.0), std=(0.5, 0.5, 0.5, 1.0)
)


def network(
    name: str,
    summary: str,
    load: str,
    paper: str,
    *,
    task: str,
    input: ImageInput,
    parameters: int = 0,
    macs: int = 0,
    alias: str = "",
    license: str = "Apache-2.0",
    **options: int,
) -> Architecture:
    """A network that knows no classes; ``paper`` is its number at arXiv. ``macs`` are the generator's."""
    return Architecture(
        name=name,
        summary=summary,
        load=f"zoo_gan.{load}",
        task=task,
        input=input,
        makes=IMAGES if task == "generate" else None,
        head="",
        classes=False,
        license=license,
        paper=f"https://arxiv.org/abs/{paper}" if paper else "",
        aliases=(alias,) if alias else (),
        options=options,
        parameters=parameters,
        macs=macs,
    )


SPECS = (
    network(
        "dcgan",
        "DCGAN: draws small images out of noise; spectral normalisation, five losses to choose from",
        "dcgan:build",
        "1511.06434",
        task="generate",
        input=ImageInput.latent(100),
        parameters=1_731_908,
        macs=17_973_248,
    ),
    Architecture(
        name="dcgan-conditional",
        summary="DCGAN that is told a class to draw, with a projection discriminator",
        load="zoo_gan.dcgan:build",
        task="generate",
        input=ImageInput.latent(100),
        makes=IMAGES,
        head="generator.classes,discriminator.classes",
        license="Apache-2.0",
        paper="https://arxiv.org/abs/1802.05637",
        aliases=("cdcgan",),
        parameters=2_145_068,
        macs=18_383_848,
    ),
    network(
        "srresnet",
        "SRResNet without batch norm, super-resolution x2 x3 x4; eight blocks of 32 channels train in minutes",
        "srresnet:build",
        "1609.04802",
        task="restore",
        input=PLAIN,
        parameters=209_805,
        macs=951_975_936,
        scale=2,
        blocks=8,
        width=32,
    ),
    network(
        "srgan",
        "SRGAN: SRResNet trained against a critic with a perceptual loss, x2 x3 x4",
        "srresnet:build_gan",
        "1609.04802",
        task="restore",
        input=PLAIN,
        parameters=1_552_079,
        macs=1_938_161_664,
        scale=4,
        blocks=8,
        width=32,
        critic_width=32,
    ),
    network(
        "esrgan",
        "ESRGAN (RRDBNet), x1 x2 x3 x4; takes the weights of ESRGAN, BSRGAN and Real-ESRGAN",
        "esrgan:build",
        "1809.00219",
        task="restore",
        input=PLAIN,
        parameters=21_911_556,
        macs=73_428_369_408,
        alias="rrdbnet",
        scale=4,
    ),
    network(
        "carn-m",
        "CARN-M: a quarter of a million weights, x2 x3 x4; takes the published weights",
        "carn:build_mobile",
        "1803.08664",
        task="restore",
        input=PLAIN,
        parameters=257_051,
        macs=1_621_020_672,
        scale=2,
    ),
    network(
        "carn",
        "CARN: cascading residual blocks, x2 x3 x4",
        "carn:build",
        "1803.08664",
        task="restore",
        input=PLAIN,
        parameters=964_187,
        macs=3_961_442_304,
        scale=2,
    ),
    network(
        "spandrel",
        "Whatever restoration network a file of weights is of: Real-ESRGAN, SwinIR, NAFNet, … through spandrel",
        "foreign:build",
        "",
        task="restore",
        input=PLAIN,
        license="MIT",
    ),
    network(
        "inpaint-gated",
        "Inpainting by gated convolutions against a critic of patches (SN-PatchGAN), in one stage",
        "inpaint:build_gated",
        "1806.03589",
        task="restore",
        input=HOLES,
        parameters=10_813_243,
        macs=42_799_202_304,
    ),
    network(
        "inpaint-partial",
        "Inpainting by a U-Net of partial convolutions",
        "inpaint:build_partial",
        "1804.07723",
        task="restore",
        input=HOLES,
        parameters=11_660_931,
        macs=11_573_541_184,
    ),
    network(
        "pix2pix",
        "pix2pix: a U-Net against a critic of patches, learnt from pairs of images",
        "pix2pix:build",
        "1611.07004",
        task="translate",
        input=PICTURE,
        parameters=57_183_236,
        macs=6_048_186_368,
    ),
    network(
        "cyclegan",
        "CycleGAN: two residual generators and two critics, learnt from images without pairs",
        "cyclegan:build",
        "1703.10593",
        task="translate",
        input=PICTURE,
        parameters=28_285_832,
        macs=49_551_507_456,
    ),
    network(
        "style",
        "Fast neural style: paints a photo in the manner of one picture",
        "style:build",
        "1603.08155",
        task="translate",
        input=PHOTO,
        parameters=1_679_235,
        macs=10_078_912_512,
        alias="fast-neural-style",
    ),
)


@hookimpl
def zoo_register() -> Iterable[Spec]:
    return SPECS
