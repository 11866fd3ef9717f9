"""How large the masks are that a piece of code makes."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class LargestMask(TorchDispatchMode):
    """Notes the elements of the largest bool tensor that is made inside the context."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.dtype == torch.bool:
            self.elements = max(self.elements, out.numel())
        return out
