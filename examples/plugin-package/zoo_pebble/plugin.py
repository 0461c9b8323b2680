"""What this plugin registers. Imports nothing but zoo: the network is named by a dotted path."""

from zoo import Architecture, ImageInput, hookimpl


@hookimpl
def zoo_register():
    return [
        Architecture(
            name="pebblenet",
            summary="Depthwise separable network of five layers for small images",
            load="zoo_pebble.network:build",
            task="classify",
            input=ImageInput(height=32, width=32, resize="squash", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
            head="head",
            license="Apache-2.0",
            paper="https://arxiv.org/abs/1704.04861",
            parameters=4_394,
            macs=190_592,
        )
    ]
