"""A video transformer of two self-attention layers, made without Diffusers."""

from acme_video.model import AcmeTransformer

__all__ = ["AcmeTransformer"]
