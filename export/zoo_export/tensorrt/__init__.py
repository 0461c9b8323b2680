"""TensorRT and TensorRT-RTX: what they refuse, said before they are asked, and the one place that asks them."""
