"""The card that Triton compiles for, and what the kernels ask of it."""

from __future__ import annotations

import triton


def compiled_for() -> str:
    """Card that kernels are compiled for, e.g. `"sm_90"` or `"gfx942"`; empty in the interpreter."""
    try:
        target = triton.runtime.driver.active.get_current_target()
    except RuntimeError:  # the interpreter needs no GPU
        return ""
    return str(target.arch) if target.backend == "hip" else f"sm_{target.arch}"


def product_precision(card: str) -> str:
    """`input_precision` of products: for fp32 three of TF32, or fp32 itself on AMD, where Triton has no such thing.

    Args:
        card: As `compiled_for` says it.
    """
    return "ieee" if card.startswith("gfx") else "tf32x3"
