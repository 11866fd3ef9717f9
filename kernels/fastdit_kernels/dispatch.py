"""Which implementation runs, and why another does not."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

from fastdit_kernels.backends import triton_unavailable_reason
from fastdit_kernels.errors import InvalidInputError, KernelUnavailableError
from fastdit_kernels.implementations.triton_configurations import architecture_of, unsupported

logger = logging.getLogger(__name__)

Attend = Callable[..., tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Implementation:
    """A way to run block-sparse attention.

    Args:
        name: What users write.
        module: Where its `attend` is.
        limits: Why it cannot take a query and tiles, beyond what holds for all; `None` where it can.
        packed_entries: Whether its `attend` takes entries with their level bits.
        gpu_only: `"auto"` passes over it for tensors that are not on a GPU.
    """

    name: str
    module: str
    limits: Callable[[torch.Tensor, tuple[int, int] | None], str | None] | None = None
    packed_entries: bool = False
    gpu_only: bool = False

    def unavailable_reason(self, query: torch.Tensor, tiles: tuple[int, int] | None = None) -> str | None:
        """Why this implementation cannot take `query` and `(q_tile, kv_tile)`; `None` if it can."""
        if not query.dtype.is_floating_point or query.dtype.itemsize < 2:
            return f"dtype {query.dtype} is not supported: use float64, float32, bfloat16 or float16"
        return None if self.limits is None else self.limits(query, tiles)


def _triton_limits(query: torch.Tensor, tiles: tuple[int, int] | None) -> str | None:
    reason = triton_unavailable_reason(query)
    if reason is not None:
        return reason
    if architecture_of(query.device) is None:
        return f"the Triton kernel has no configuration for {torch.cuda.get_device_name(query.device)}"
    return unsupported(query.shape[-1], tiles)


def _flex_limits(query: torch.Tensor, tiles: tuple[int, int] | None) -> str | None:
    if query.device.type == "cpu":
        return None
    if query.dtype == torch.float64:
        return "compiled flex_attention takes float32, bfloat16 or float16"
    if tiles is not None and any(tile % 16 for tile in tiles):
        return f"tiles {tiles[0]} x {tiles[1]}: compiled flex_attention takes multiples of 16"
    return None


# In order of preference of "auto".
IMPLEMENTATIONS = {
    item.name: item
    for item in (
        Implementation(
            "triton",
            "fastdit_kernels.implementations.triton_attention",
            limits=_triton_limits,
            packed_entries=True,
            gpu_only=True,
        ),
        Implementation("flex", "fastdit_kernels.implementations.flex", limits=_flex_limits, gpu_only=True),
        Implementation("torch", "fastdit_kernels.implementations.torch_gather"),
        Implementation("reference", "fastdit_kernels.implementations.reference"),
    )
}


def resolve(name: str, query: torch.Tensor, tiles: tuple[int, int] | None = None) -> str:
    """The implementation to run: `name` itself, or the first that can run for `"auto"`.

    Raises:
        InvalidInputError: Unknown name.
        KernelUnavailableError: The named implementation cannot run; a named one never falls back.
    """
    if name == "auto":
        for item in IMPLEMENTATIONS.values():
            off_gpu = item.gpu_only and query.device.type != "cuda"
            reason = (
                f"on {query.device.type} it runs only when named" if off_gpu else item.unavailable_reason(query, tiles)
            )
            if reason is None:
                logger.debug("auto chose %r for %s %s", item.name, query.device.type, query.dtype)
                return item.name
            logger.debug("auto passed over %r: %s", item.name, reason)
        raise KernelUnavailableError(f"no implementation takes {query.dtype} tensors on {query.device}: {reason}")
    if name not in IMPLEMENTATIONS:
        known = ", ".join(repr(known) for known in ("auto", *IMPLEMENTATIONS))
        raise InvalidInputError(f"implementation={name!r} is unknown; accepted are {known}")
    reason = IMPLEMENTATIONS[name].unavailable_reason(query, tiles)
    if reason is not None:
        raise KernelUnavailableError(f"implementation={name!r} cannot run here: {reason}. Use 'auto' or 'torch'.")
    return name


def available_implementations(query: torch.Tensor) -> dict[str, str | None]:
    """Name -> reason why it cannot take `query`, `None` where it can."""
    return {name: item.unavailable_reason(query) for name, item in IMPLEMENTATIONS.items()}


def load(name: str) -> Attend:
    """Import an implementation and return its `attend`."""
    attend: Attend = importlib.import_module(IMPLEMENTATIONS[name].module).attend
    return attend
