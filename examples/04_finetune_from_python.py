"""Fine-tuning as a function call: what `zoo finetune` does, for a script of your own.

python 04_finetune_from_python.py photos/ runs/photos
"""

import sys
from pathlib import Path

from zoo.train.finetune import Options, finetune

data, out = sys.argv[1:]
options = Options(source="lenet5", data=data, weights="none", channels=3, epochs=2, batch_size=16, seed=1)
summary = finetune(options, Path(out), say=print)
assert summary is not None  # it is None only in the helper processes of a run on several devices
print(f"{summary.metric_name}: {summary.metrics[summary.metric_name]:.3f}, {summary.checkpoint}")
