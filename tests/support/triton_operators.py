"""The modules with the Triton kernels of the operators around attention; needs Triton."""

from fastdit_kernels import (
    triton_mass,
    triton_merge,
    triton_node_errors,
    triton_pooling,
    triton_scores,
    triton_selection,
    triton_token_moves,
)

MODULES = (
    triton_mass,
    triton_merge,
    triton_node_errors,
    triton_pooling,
    triton_scores,
    triton_selection,
    triton_token_moves,
)
