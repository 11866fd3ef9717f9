"""What the tests of all families share about sparse runs of tiny pipelines."""

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
