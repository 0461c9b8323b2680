"""A one-stage, anchor-free detector: :mod:`~zoo_detect.yolo.network` is where to begin reading."""
