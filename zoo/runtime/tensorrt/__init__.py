"""TensorRT and TensorRT-RTX on a device: the library, its engines and what runs them. No torch, no onnx."""
