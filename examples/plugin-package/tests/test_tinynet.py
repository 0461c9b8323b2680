from zoo.testing import ArchitectureTests


class TestTinyNet(ArchitectureTests):
    name = "tinynet"
