from zoo.testing import ArchitectureTests


class TestPebbleNet(ArchitectureTests):
    name = "pebblenet"
