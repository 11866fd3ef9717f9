"""Selectors: pure functions from tensors and geometry to a `BlockMask`.

One file each; they do not import each other. `own_tiles` is what all of them keep; `reach` and `static_patterns` belong
to the static one.
"""
