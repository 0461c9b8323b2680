"""A service that starts only if this machine computes what the workstation computed.

python 03_trust_but_verify.py digits.zoo
"""

import sys

import zoo.runtime
from zoo.parity.golden import selftest

stages = selftest(sys.argv[1])
for stage in stages:
    print("ok  " if stage else "FAIL", stage.stage, "-", stage.message)
if not all(stages):
    sys.exit(1)
model = zoo.runtime.load(sys.argv[1])
print("ready:", model)
