"""How much scratch memory a step of a computation may take."""

from __future__ import annotations

import torch

# On a GPU the number of launches counts, on a CPU the cache.
GPU_WORKSPACE_BYTES = 512 << 20


def workspace_bytes(device: torch.device, on_cpu: int) -> int:
    """Bytes worked on at once: `on_cpu` on a CPU, half a gigabyte elsewhere."""
    return on_cpu if device.type == "cpu" else GPU_WORKSPACE_BYTES
