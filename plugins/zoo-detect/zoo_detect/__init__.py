"""Object detectors; the edge zoo finds them through ``zoo_detect.plugin``."""
