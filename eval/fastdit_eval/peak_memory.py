"""Peak of the memory that a piece of work allocates through torch, over what was allocated before."""

from __future__ import annotations

from collections.abc import Callable

import torch


def peak_memory(run: Callable[[], object], device: torch.device) -> int:
    """Bytes of torch's allocator at their highest while `run` works, over those before it began.

    On CUDA as the allocator counts them. On a CPU the sum of what the profiler sees allocated and freed, exact for
    tensors and workspaces of torch, blind to what libraries allocate themselves; the run is slower meanwhile.

    Args:
        run: The work.
        device: Where it allocates.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.autograd.profiler.profile(use_cpu=True, profile_memory=True) as profiler:
        run()
    live = peak = 0
    for event in profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak
