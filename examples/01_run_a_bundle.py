"""On the device: a bundle, a photo, an answer. Needs numpy, Pillow and onnxruntime; no torch.

python 01_run_a_bundle.py digits.zoo photo.jpg
"""

import sys

import zoo.runtime

model = zoo.runtime.load(sys.argv[1])
result = model(sys.argv[2])  # a path, bytes, a Pillow image, or an (H, W, 3) uint8 array
for label, share in result.top(3):
    print(f"{100 * share:5.1f} %  {label}")
