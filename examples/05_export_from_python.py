"""Exporting as a function call: a bundle if the gates let it through, and the reason if they do not.

python 05_export_from_python.py runs/photos photos/ photos-bundle
"""

import sys
from pathlib import Path

from zoo.errors import GateFailed
from zoo_export.pipeline import Request, export_bundle

run, data, out = sys.argv[1:]
try:
    outcome = export_bundle(Request(source=run, data=Path(data), out=Path(out), threads=1))
except GateFailed as error:
    sys.exit(f"not exported: {error}")
for artifact in outcome.manifest["artifacts"]:
    print(artifact["name"], artifact["status"], artifact["gates"])
print("report:", outcome.report_path)
