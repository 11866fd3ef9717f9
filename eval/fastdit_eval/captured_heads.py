"""Captured attention calls as heads to compare selectors on, one group for each layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch

from fastdit.capture import CapturedCall
from fastdit.errors import ConfigError
from fastdit_eval.attention_heads import AttentionHeads


def captured_heads(calls: Iterable[CapturedCall]) -> list[AttentionHeads]:
    """Heads of every layer, those of all its steps and prompts side by side, in fp32.

    Raises:
        ConfigError: The calls of one layer differ in geometry, or there are none.
    """
    layers: dict[tuple[int, int], list[CapturedCall]] = defaultdict(list)
    for call in calls:
        layers[call.transformer, call.layer].append(call)
    if not layers:
        raise ConfigError("no captured attention calls: capture at least one layer and step")
    groups = []
    for (transformer, layer), group in sorted(layers.items()):
        grids = {call.grid for call in group}
        if len(grids) > 1:
            raise ConfigError(f"layer {layer} was captured with grids {grids}: capture videos of one size")
        query, key, value = (
            torch.cat([getattr(call, name) for call in group]).unsqueeze(0).float()
            for name in ("query", "key", "value")
        )
        name = f"layer {layer}" if transformer == 0 else f"transformer {transformer + 1} layer {layer}"
        groups.append(AttentionHeads(name=name, grid=group[0].grid, query=query, key=key, value=value))
    return groups
