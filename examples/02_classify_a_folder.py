"""A folder of images to a CSV, sixteen at a time, leaving out those that cannot be read.

python 02_classify_a_folder.py digits.zoo photos/ answers.csv
"""

import csv
import sys
from pathlib import Path

import zoo.runtime
from zoo.errors import ImageError
from zoo.inputs import read_image

bundle, folder, out = sys.argv[1:]
model = zoo.runtime.load(bundle, threads=1)

readable = []
for path in sorted(p for p in Path(folder).rglob("*") if p.is_file()):
    try:
        readable.append((path, read_image(path, model.input)))
    except ImageError as error:
        print(error, file=sys.stderr)

answers = model([image for _, image in readable], batch=16)
with open(out, "w", newline="") as file:
    rows = csv.writer(file)
    rows.writerow(["path", "label", "share"])
    for (path, _), answer in zip(readable, answers, strict=True):
        rows.writerow([path, answer.label, f"{answer.score:.4f}"])
print(f"{len(readable)} images, {out}")
