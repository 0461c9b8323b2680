"""Turns trained networks into device artefacts; the edge zoo finds it through ``zoo_export.plugin``."""
