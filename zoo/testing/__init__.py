"""What plugin authors test with: subclass :class:`ArchitectureTests` in five lines, and run pytest.

from zoo.testing import ArchitectureTests

class TestPebbleNet(ArchitectureTests):
    name = "pebblenet"
"""

from __future__ import annotations

from .architectures import ArchitectureTests
from .signal import carries_signal, give_signal, probe

__all__ = ["ArchitectureTests", "carries_signal", "give_signal", "probe"]
