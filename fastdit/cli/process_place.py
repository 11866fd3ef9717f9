"""Where a process stands among those that `accelerate launch` started."""

from __future__ import annotations

import os


def launched_processes() -> int:
    """Processes that share the work; 1 without a launcher. Known before they have met."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_place() -> tuple[int, int, str | None]:
    """Rank, number of processes and device of this process, as `accelerate launch` set them."""
    if launched_processes() == 1:
        return 0, 1, None
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())
    # "cpu:0" would not be taken for the CPU, whose weights are float32.
    device = "cpu" if state.device.type == "cpu" else str(state.device)
    return state.process_index, state.num_processes, device
