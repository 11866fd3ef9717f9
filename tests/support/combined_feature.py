"""The one question asked of every feature that changes how a model runs: does fastdit leave it working?"""

import torch
from compatibility_document import not_applicable
from families import ALL_DENSE, close, small_tiles

import fastdit

# What features raise where a family or this machine does not have what they need.
STOCK_FAILURES = (
    ValueError,
    TypeError,
    RuntimeError,
    AttributeError,
    KeyError,
    IndexError,
    NotImplementedError,
    ImportError,
)


def stock_run(family, turn_on, **arguments):
    """Latents of the stock pipeline with the feature; ends the test if that fails."""
    pipe = family.build()
    try:
        turn_on(pipe)
        return family.run(pipe, **arguments)
    except STOCK_FAILURES as error:
        not_applicable(f"the stock pipeline fails with {type(error).__name__}")


def check_feature(family, turn_on, tolerance=1e-5):
    """A feature turned on before `enable` and after it: dense calls as on stock, sparse ones alike in both orders.

    Sparse runs are made twice, because some features rebuild themselves after each pipeline call.

    Args:
        family: What to build.
        turn_on: Takes a pipeline.
        tolerance: How close a run at density 1.0 must come to the stock run, of its largest value; None where a feature
            that decides by how much tensors differ may decide otherwise.
    """
    stock = stock_run(family, turn_on)
    pipe = family.build()
    turn_on(pipe)
    with fastdit.enable(pipe, ALL_DENSE):
        assert torch.equal(family.run(pipe), stock)
    with fastdit.enable(pipe, small_tiles(density=1.0)):
        assert tolerance is None or close(family.run(pipe), stock, tolerance)
    with fastdit.enable(pipe, small_tiles()):
        sparse = run_twice(family, pipe)
    assert torch.equal(family.run(pipe), stock)

    pipe = family.build()
    with fastdit.enable(pipe, small_tiles()) as session:
        turn_on(pipe)
        assert torch.equal(run_twice(family, pipe), sparse)
        assert session.stats.density(sparse_only=True) < 1.0
    assert torch.equal(family.run(pipe), stock)


def run_twice(family, pipe, **arguments):
    """Latents of a run that the next one repeats exactly."""
    first = family.run(pipe, **arguments)
    assert first.isfinite().all()
    assert torch.equal(family.run(pipe, **arguments), first)
    return first
