"""Token orders: permutations that make runs of consecutive tokens compact in time, height and width.

`gilbert` is the generalised Hilbert curve for boxes of any size (J. Červený, "gilbert", 2018): a box is split along
its longest sides into sub-boxes that are walked so that the end of one touches the start of the next.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal, NamedTuple, get_args

import torch

from fastdit.errors import ConfigError
from fastdit.grid import VideoGrid

OrderName = Literal["gilbert", "raster", "space_major", "frame_gilbert"]
ORDER_NAMES: tuple[str, ...] = get_args(OrderName)

_Vector = tuple[int, int, int]

# Tiles move on by so many tokens from step to step, and are back where they were after this span. A dozen steps spread
# evenly over the runs of all levels; 43, which does so with three and then begins again, gained 1.2 dB less.
STEP_SHIFT, SHIFT_SPAN = 27, 127


class ShiftedOrder(NamedTuple):
    """A token order that begins further on, with what it passes over put last: its tiles and pooled runs lie elsewhere.

    Args:
        name: One that `token_order` knows, or for keys `"score"`, which is not shifted.
        shift: Video tokens that are passed over.
    """

    name: str
    shift: int = 0


def shift_at(step: int) -> int:
    """`1 + 27 * step mod 127`: how many tokens further on tiles lie in a denoising step. Never 0, as in a lone call.

    Where tiles are pooled, the errors of successive steps are nearly the same if the tiles are (on the bundled model a
    cosine of .8 to .95), and add up. Those of tiles that lie elsewhere differ, and in part cancel.
    """
    return 1 + step * STEP_SHIFT % SHIFT_SPAN


def video_order(grid: VideoGrid, name: str) -> torch.Tensor:
    """The video tokens in the named order, as indices into frame-major order.

    Args:
        grid: Geometry; its text is ignored.
        name: `"gilbert"` (compact in 3-D), `"raster"` (frame by frame), `"space_major"` (place by place, all its
            frames in a row) or `"frame_gilbert"` (frame by frame, compact in 2-D within a frame).

    Returns:
        int64 `[grid.video_length]`, a permutation, on the CPU.
    """
    if name == "raster":
        return torch.arange(grid.video_length)
    if name == "space_major":
        return torch.arange(grid.video_length).view(grid.frames, -1).T.flatten()
    if name == "gilbert":
        cells = torch.tensor(list(_walk((grid.frames, grid.height, grid.width))))
        return (cells[:, 0] * grid.height + cells[:, 1]) * grid.width + cells[:, 2]
    if name == "frame_gilbert":
        size = grid.height * grid.width
        cells = torch.tensor(list(_walk((1, grid.height, grid.width))))
        frame = cells[:, 1] * grid.width + cells[:, 2]
        # Every other frame is walked backwards, so that the way goes on at the place where it left the last frame.
        return torch.cat([(frame.flip(0) if number % 2 else frame) + number * size for number in range(grid.frames)])
    raise ConfigError(f"order={name!r} is unknown; accepted are {', '.join(map(repr, ORDER_NAMES))}")


def token_order(grid: VideoGrid, name: str) -> torch.Tensor:
    """Video tokens in the named order, then what every query sees, as indices into the model's own sequence.

    The order serves queries and keys alike; `grid.query_segments` and `grid.key_segments` cut it.

    Args:
        grid: Geometry.
        name: As for `video_order`.

    Returns:
        int64 `[grid.length]`, a permutation, on the CPU.
    """
    chosen_from = replace(grid, frames=grid.frames - grid.kept_frames, kept_frames=0, dense_frames=0)
    tokens = video_order(chosen_from, name) + grid.video_start + grid.kept_length
    return torch.cat([tokens, kept_tokens(grid)])


def shifted(order: torch.Tensor, grid: VideoGrid, shift: int) -> torch.Tensor:
    """A token order whose video tokens begin `shift` places further on; those passed over come last of them.

    Args:
        order: `[S]`, by `token_order`.
        grid: Its geometry.
        shift: At least 0; counted modulo the video tokens that keys are chosen from.
    """
    video = grid.key_segments[0]
    return torch.cat([order[:video].roll(-shift), order[video:]]) if shift % video else order


def kept_tokens(grid: VideoGrid, device: torch.device | None = None) -> torch.Tensor:
    """Tokens whose keys every query sees: kept frames, those with dense queries last, then text.

    Args:
        grid: Geometry.
        device: Where the result lies, default the CPU.

    Returns:
        int64 `[grid.kept_length + grid.text_length]`, indices into the model's own sequence.
    """
    dense = grid.dense_frames * grid.height * grid.width
    video = torch.arange(grid.kept_length, device=device) + grid.video_start
    text = torch.arange(grid.text_length, device=device) + grid.text_start
    return torch.cat([video[dense:], video[:dense], text])


def _walk(sizes: _Vector) -> Iterator[_Vector]:
    """Cells of a box in Gilbert order, the longest side walked first."""
    axes = sorted(range(3), key=lambda axis: -sizes[axis])
    spans = []
    for axis in axes:
        span = [0, 0, 0]
        span[axis] = sizes[axis]
        spans.append((span[0], span[1], span[2]))
    # An explicit stack instead of recursion: boxes are pushed in reverse, so they pop in walking order.
    stack = [((0, 0, 0), *spans)]
    while stack:
        start, a, b, c = stack.pop()
        parts = _split(start, a, b, c)
        if parts is None:
            yield from _line(start, a, b, c)
        else:
            stack.extend(reversed(parts))


def _line(start: _Vector, a: _Vector, b: _Vector, c: _Vector) -> Iterator[_Vector]:
    """Cells of a box that is one cell thick in two directions."""
    along = max((a, b, c), key=_size)
    step = _unit(along)
    for index in range(_size(along)):
        yield _add(start, _scale(step, index))


_Box = tuple[_Vector, _Vector, _Vector, _Vector]


def _split(start: _Vector, a: _Vector, b: _Vector, c: _Vector) -> list[_Box] | None:
    """Sub-boxes `(start, a, b, c)` in walking order, or `None` for a line; each is entered where the last one ended."""
    w, h, d = _size(a), _size(b), _size(c)
    if sorted((w, h, d))[1] == 1:
        return None
    a2, b2, c2 = _half(a), _half(b), _half(c)
    rest_a, rest_b, rest_c = _sub(a, a2), _sub(b, b2), _sub(c, c2)
    last_a = _sub(a, _unit(a))
    if 2 * w > 3 * h and 2 * w > 3 * d:
        return [(start, a2, b, c), (_add(start, a2), rest_a, b, c)]
    if 3 * h > 4 * d:
        turn = _add(start, last_a, _sub(b2, _unit(b)))
        return [(start, b2, c, a2), (_add(start, b2), a, rest_b, c), (turn, _neg(b2), c, _neg(rest_a))]
    if 3 * d > 4 * h:
        turn = _add(start, last_a, _sub(c2, _unit(c)))
        return [(start, c2, a2, b), (_add(start, c2), a, b, rest_c), (turn, _neg(c2), _neg(rest_a), b)]
    last_b2, last_c = _sub(b2, _unit(b)), _sub(c, _unit(c))
    return [
        (start, b2, c2, a2),
        (_add(start, b2), c, a2, rest_b),
        (_add(start, last_b2, last_c), a, _neg(b2), _neg(rest_c)),
        (_add(start, last_a, b2, last_c), _neg(c), _neg(rest_a), rest_b),
        (_add(start, last_a, last_b2), _neg(b2), c2, _neg(rest_a)),
    ]


def _size(v: _Vector) -> int:
    return abs(v[0] + v[1] + v[2])


def _unit(v: _Vector) -> _Vector:
    size = max(_size(v), 1)
    return (v[0] // size, v[1] // size, v[2] // size)


def _half(v: _Vector) -> _Vector:
    """Half of an axis vector; made even for sides over two, which keeps the curve unbroken where it can be."""
    size = _size(v)
    half = size // 2
    if half % 2 and size > 2:
        half += 1
    return _scale(_unit(v), half)


def _scale(v: _Vector, factor: int) -> _Vector:
    return (v[0] * factor, v[1] * factor, v[2] * factor)


def _neg(v: _Vector) -> _Vector:
    return (-v[0], -v[1], -v[2])


def _sub(v: _Vector, other: _Vector) -> _Vector:
    return (v[0] - other[0], v[1] - other[1], v[2] - other[2])


def _add(*vectors: _Vector) -> _Vector:
    return (sum(v[0] for v in vectors), sum(v[1] for v in vectors), sum(v[2] for v in vectors))
