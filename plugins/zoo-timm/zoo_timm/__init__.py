"""Every timm classifier; the edge zoo finds them through ``zoo_timm.plugin``."""
