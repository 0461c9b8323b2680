"""An example plugin for the edge zoo: one small network of its own."""
