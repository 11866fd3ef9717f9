import torch

from fastdit.mask_cache import MaskCache


def test_entries_are_built_once():
    cache, built = MaskCache(), []

    def build():
        built.append(1)
        return torch.zeros(4)

    assert cache.get("a", build) is cache.get("a", build)
    assert len(built) == 1


def test_the_bound_holds_and_the_least_used_goes_first():
    cache = MaskCache(max_bytes=100)
    for key in "abc":
        cache.get(key, lambda: torch.zeros(10))
        cache.get("a", lambda: torch.zeros(10))
    assert cache.num_bytes <= 100
    assert len(cache) == 2
    rebuilt = []
    cache.get("a", lambda: rebuilt.append(1) or torch.zeros(10))
    assert not rebuilt


def test_the_number_of_entries_is_bounded_too():
    cache = MaskCache(max_entries=2)
    for key in "abc":
        cache.get(key, lambda: torch.zeros(1))
    assert len(cache) == 2
    assert cache.num_bytes == 8


def test_an_entry_over_the_bound_is_returned_but_not_kept():
    cache = MaskCache(max_bytes=10)
    assert cache.get("big", lambda: torch.zeros(100)).numel() == 100
    assert len(cache) == 0
    assert cache.num_bytes == 0
