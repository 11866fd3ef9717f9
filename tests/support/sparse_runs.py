"""What the tests of all families share about sparse runs of tiny pipelines."""

from contextlib import contextmanager

import pytest

import fastdit

# Layers have some dozen tokens, so tiles are small, and nothing is dense but by the test's own wish.
NO_DENSE = fastdit.Schedule(dense_steps=0, dense_layers=())


def small(**settings):
    """The adaptive method for tiny sequences."""
    settings = {"schedule": NO_DENSE, "density": 0.4, "q_tile": 8, "kv_tile": 4, "min_tokens": 0, **settings}
    return fastdit.AdaptiveConfig(**settings)


def same(first, second):
    """Whether two sequences hold the very same objects."""
    return all(a is b for a, b in zip(first, second, strict=True))


@contextmanager
def raises_in_call(module, number):
    """What runs inside ends with an exception that the `number`-th call of `module` raises."""
    calls = []

    def explode(*_):
        calls.append(1)
        if len(calls) == number:
            raise ZeroDivisionError

    handle = module.register_forward_hook(explode)
    try:
        with pytest.raises(ZeroDivisionError):
            yield
    finally:
        handle.remove()
