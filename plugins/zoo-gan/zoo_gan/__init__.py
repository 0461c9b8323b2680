"""Generators for the edge zoo: GANs, super-resolution, inpainting, image-to-image translation, style transfer."""
