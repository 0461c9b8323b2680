"""Teach a network to enlarge your photos twice, prove its export, and enlarge one of them.

python examples/08_enlarge_photos.py PHOTOS OUT
"""

import sys
from pathlib import Path

import zoo.runtime
from zoo.data.naming import images_in
from zoo.train.finetune import Options, finetune
from zoo_export.pipeline import Request, export_bundle

photos, out = Path(sys.argv[1]), Path(sys.argv[2])
out.mkdir(parents=True, exist_ok=True)

# good photos are enough: they are made small here. For good results leave epochs and blocks as they come
options = Options(
    source="srresnet", data=str(photos), build={"scale": 2, "blocks": 1}, epochs=1, patch=16, batch_size=4
)
run = finetune(options, out / "run", say=print)

# a photo of the validation split each, at its own pixels: numbers, pixels and PSNR against PyTorch
request = Request(source=str(run.folder), out=out / "bundle", data=photos, waive="latency is not what is shown here")
outcome = export_bundle(request)

model = zoo.runtime.load(outcome.bundle)
photo = images_in(photos)[0][0]
result = model(photo)
result.image().save(out / "big.png")
print(
    f"{photo.name}: {result.width} x {result.height} pixels; {run.metrics['PSNR-Y'] * 100:.2f} dB on photos not learnt from"
)
