"""Small classic networks, each written out in one file; the edge zoo finds them through ``zoo_classic.plugin``."""
