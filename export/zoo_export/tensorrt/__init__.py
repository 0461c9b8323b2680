"""TensorRT and TensorRT-RTX: what they refuse, said before they are asked, and what is made for them."""
