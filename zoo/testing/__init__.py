"""What plugin authors test with: subclass :class:`ArchitectureTests` in five lines, and run pytest:

>>> class TestPebbleNet(ArchitectureTests):
...     name = "pebblenet"
"""

from __future__ import annotations

import pytest

# before the import, so that a failing assertion of the kit shows its values
pytest.register_assert_rewrite("zoo.testing.architectures")

from .architectures import ArchitectureTests, build_for_tensorrt  # noqa: E402
from .signal import carries_signal, give_signal, probe  # noqa: E402

__all__ = ["ArchitectureTests", "build_for_tensorrt", "carries_signal", "give_signal", "probe"]
