"""Detection on a device: how many objects of each kind a photo shows, and a COCO file of all of them.

usage: python 07_count_objects.py BUNDLE OUT.json PHOTO...
"""

import collections
import json
import sys

import zoo.runtime

model = zoo.runtime.load(sys.argv[1])  # decode={"confidence": 0.5} overrides the bundle's own threshold
found = []
for number, photo in enumerate(sys.argv[3:]):
    result = model(photo)
    counts = collections.Counter(label for label, score, box in result)
    print(photo, dict(counts))
    found += result.to_coco(number)
with open(sys.argv[2], "w") as file:
    json.dump(found, file)
