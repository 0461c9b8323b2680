"""Segmentation on a device: what share of each photo every class covers, and the outlines drawn on it.

usage: python 06_outline_and_measure.py BUNDLE PHOTO [DRAWN]
"""

import sys

from PIL import Image

import zoo.runtime

model = zoo.runtime.load(sys.argv[1])
result = model(sys.argv[2])
pixels = result.width * result.height
for label, area in result.areas().items():
    print(f"{label}: {100 * area / pixels:.1f} % of the photo, {len(result.polygons(label))} regions")
if len(sys.argv) > 3:
    result.draw(Image.open(sys.argv[2])).save(sys.argv[3])
