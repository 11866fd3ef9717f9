"""CUDA tensors without a GPU: what makes the host wait for the device, or mixes devices, shows without one.

`FakeTensorMode` gives tensors on `cuda` with shapes, strides and dtypes and no values. What needs a value on the host
raises there. Copies between host and device, for which the host waits as well, are noted with the place in our code.
"""

import contextlib
import traceback
import weakref
from collections import Counter
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).parents[2]
ROOMS = ("fastdit", "kernels", "pipelines")
aten = torch.ops.aten


def place_in_our_code():
    """`file:function` of the innermost frame of the package."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in ROOMS:
            return f"{path.name}:{frame.name}"
    return "elsewhere"


class DeviceWatch(TorchDispatchMode):
    """Counts operators; notes those that copy between host and device, and attention kernels that ask the host."""

    def __init__(self):
        super().__init__()
        self.waits = {}
        self.operators = 0
        self.live_bytes = self.peak_bytes = 0
        self.holders = Counter()

    def note(self, what):
        self.waits.setdefault(place_in_our_code(), set()).add(what)

    def hold(self, x):
        """Count the memory of a tensor until the last one that lies in it is gone."""
        if not x.is_cuda or getattr(x, "is_counted", False):
            return
        x.is_counted = True
        storage = x.untyped_storage()
        number, size = storage._cdata, storage.nbytes()
        self.live_bytes += 0 if self.holders[number] else size
        self.holders[number] += 1
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        weakref.finalize(x, self.release, number, size)

    def release(self, number, size):
        self.holders[number] -= 1
        self.live_bytes -= 0 if self.holders[number] else size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self.operators += 1
        out = func(*args, **kwargs)
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        made = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        for x in made:
            self.hold(x)
        devices = {x.device.type for x in given if x.ndim or func in (aten._to_copy.default, aten.copy_.default)}
        devices |= {x.device.type for x in made} if given else set()
        if len(devices) > 1:
            self.note(f"{func} between {' and '.join(sorted(devices))}")
        if func is torch.ops.fastdit.block_sparse_attention.default and args[-1] in ("torch", "reference"):
            self.note(f"attention by {args[-1]!r} on a GPU")
        return out


# Python's own forms of these want a CUDA driver as well.
BY_HAND = {
    torch.Tensor.contiguous: lambda x: x if x.is_contiguous() else x.clone(memory_format=torch.contiguous_format),
    torch.Tensor.copy_: aten.copy_.default,
    torch.Tensor.__invert__: aten.bitwise_not.default,
    torch.Tensor.__ior__: aten.bitwise_or_.Tensor,
    torch.Tensor.__iand__: aten.bitwise_and_.Tensor,
}


class Indexing(TorchFunctionMode):
    """Subscripts as operators, because Python's own want a CUDA driver; and tensors made from lists on the device."""

    def __init__(self, watch):
        super().__init__()
        self.watch = watch

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.Tensor.__getitem__:
            return self.read(*args)
        if func is torch.Tensor.__setitem__:
            return self.write(*args)
        if func in BY_HAND:
            return BY_HAND[func](*args, **kwargs)
        made = func in (torch.tensor, torch.as_tensor) and not isinstance(args[0], torch.Tensor)
        if made and torch.device(kwargs.get("device") or "cpu").type == "cuda":
            self.watch.note("torch.tensor of host values on cuda")
        return func(*args, **kwargs)

    def read(self, x, index):
        part, places = self.view(x, index)
        return aten.index.Tensor(part, places) if places else part

    def write(self, x, index, value):
        part, places = self.view(x, index)
        if not isinstance(value, torch.Tensor):
            value = torch.full((), value, dtype=x.dtype, device=x.device)
        if places:
            aten.index_put_.default(part, places, value.to(x.dtype))
        else:
            aten.copy_.default(part, value)

    def view(self, x, index):
        """The view that the plain part of an index gives, and the index tensors by its dimensions."""
        index = index if isinstance(index, tuple) else (index,)
        taken = sum(1 for item in index if item is not None and item is not Ellipsis)
        if not any(item is Ellipsis for item in index):
            index = (*index, Ellipsis)
        dim, places = 0, {}
        for item in index:
            if item is Ellipsis:
                dim += x.ndim - dim - (taken - self.seen(index, item))
            elif item is None:
                x, dim = x.unsqueeze(dim), dim + 1
            elif isinstance(item, slice):
                x, dim = aten.slice.Tensor(x, dim, item.start, item.stop, item.step or 1), dim + 1
            elif isinstance(item, int):
                x = x.select(dim, item)
            else:
                if not isinstance(item, torch.Tensor):
                    self.watch.note("index by a list of host values")
                    item = torch.tensor(item).to(x.device)
                places[dim] = item
                dim += 1
        return x, [places.get(number) for number in range(max(places) + 1)] if places else []

    def seen(self, index, stop):
        before = index[: next(number for number, item in enumerate(index) if item is stop)]
        return sum(1 for item in before if item is not None)


@contextlib.contextmanager
def fake_cuda():
    """Tensors made inside may lie on `cuda`; yields the watch."""
    watch = DeviceWatch()
    with FakeTensorMode(), watch, Indexing(watch):
        yield watch
