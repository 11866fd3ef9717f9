"""The operators that compiled code calls, without a model."""

import gc

import torch
from torch._dynamo.utils import counters

import fastdit
from fastdit import compiled
from fastdit.grid import VideoGrid
from fastdit.layer_slot import LayerSlot
from fastdit.session import Session

GRIDS = (
    VideoGrid(frames=3, height=2, width=4),
    VideoGrid(frames=1, height=5, width=7, text_length=6, text_first=True),
)


def test_a_grid_survives_the_way_through_an_operator():
    for grid in GRIDS:
        assert compiled.unpack_geometry(compiled.pack_geometry(grid)) == grid


def test_one_graph_serves_all_layers_and_changing_decisions(rng):
    """Layers, steps, dense and sparse calls, and the session that is asked: none of them may become a guard."""
    config = fastdit.AdaptiveConfig(
        q_tile=8, kv_tile=4, density=0.4, min_tokens=0, schedule=fastdit.Schedule(dense_steps=1, dense_layers=(1,))
    )
    session = Session(config)
    slots = [LayerSlot(session, 0, layer, str(layer), 3) for layer in range(3)]
    grid = GRIDS[0]
    query, key, value = torch.randn(3, 1, grid.length, 2, 8, generator=rng).unbind(0)

    def layer(slot, query, key, value):
        if slot.wants_dense(grid.length, 1, 2):
            return slot.dense_backend()(query, key, value)
        return slot.attend(query, key, value)

    def run(layer):
        session.reset()
        for _ in range(3):
            session.begin_forward(0, grid)
            for slot in slots:
                yield layer(slot, query, key, value)

    eager = list(run(layer))
    records = dict(session.stats.dense_reasons())
    torch._dynamo.reset()
    counters.clear()
    found = list(run(torch.compile(layer, fullgraph=True, backend="eager")))
    assert all(torch.equal(one, other) for one, other in zip(found, eager, strict=True))
    assert session.stats.dense_reasons() == records == {"dense_steps": 3, "dense_layers": 2}
    assert counters["stats"]["unique_graphs"] == 1


def test_compiled_code_attends_with_text_lengths_as_eager_code_does(rng):
    grid = GRIDS[1]
    query, key, value = torch.randn(3, 2, grid.length, 2, 8, generator=rng).unbind(0)
    lengths = (2, 6)
    for dense_steps in (0, 1):
        schedule = fastdit.Schedule(dense_steps=dense_steps, dense_layers=())
        session = Session(fastdit.AdaptiveConfig(q_tile=8, kv_tile=4, density=1.0, min_tokens=0, schedule=schedule))
        slot = LayerSlot(session, 0, 0, "layer", 1)
        session.begin_forward(0, grid)
        out = compiled.attend(query, key, value, slot.handle, session.handle, lengths)
        for entry, length in enumerate(lengths):
            valid = [*range(length), *range(grid.text_length, grid.length)]
            q, k, v = (x[entry, valid].transpose(0, 1) for x in (query, key, value))
            expected = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(0, 1)
            assert torch.allclose(out[entry, valid], expected, atol=1e-5)
            assert not out[entry, length : grid.text_length].any()


def test_a_number_does_not_keep_a_session_alive():
    gc.collect()
    before = len(compiled._objects)
    session = Session(fastdit.AdaptiveConfig())
    slot = LayerSlot(session, 0, 0, "layer", 1)
    assert len(compiled._objects) == before + 2
    del session, slot
    gc.collect()
    assert len(compiled._objects) == before
