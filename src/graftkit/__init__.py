"""Transfer learning for text and images on Hugging Face models; the recipes in `recipes/` are the way in."""

__version__ = "0.1.0"
