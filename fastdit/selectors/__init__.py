"""Selectors: pure functions from tensors and geometry to a `BlockMask`.

One file each; they do not import each other.
"""
