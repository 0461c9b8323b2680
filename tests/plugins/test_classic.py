"""zoo-classic keeps the contract that outsiders keep, by the same kit."""

from zoo.testing import ArchitectureTests


class TestLeNet5(ArchitectureTests):
    name = "lenet5"
