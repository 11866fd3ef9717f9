"""LTX-Video on random weights: a family that is one small file."""

import functools

import pytest
import sparse_runs
import tiny_ltx
import torch
from diffusers import LTXImageToVideoPipeline
from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition
from PIL import Image
from torch import nn

import fastdit
from fastdit_pipelines.ltx import project
from fastdit_pipelines.ltx_coordinates import CoordinateReader

build = functools.cache(tiny_ltx.build)  # every test leaves the pipeline as it was
small = functools.partial(sparse_runs.small, q_tile=16, kv_tile=8)


def run(pipe, **kwargs):
    return tiny_ltx.run(pipe, **{"steps": 2, **kwargs})


@pytest.mark.parametrize("kind", ["t2v", "i2v"])
def test_parity_dense_decision_sparse_run_and_restore(kind):
    pipe = build(kind)
    before, dense = dict(pipe.transformer.attn_processors), run(pipe)
    with fastdit.enable(pipe, small(density=1.0)):
        assert (run(pipe) - dense).abs().max() <= 1e-5 * dense.abs().max()
    with fastdit.enable(pipe, small(schedule=fastdit.Schedule(dense_steps=1.0))) as session:
        assert torch.equal(run(pipe), dense)
        assert session.stats.density() == 1.0
    with fastdit.enable(pipe, small()) as session:
        sparse = run(pipe)
        assert sparse.isfinite().all()
        assert not torch.equal(sparse, dense)
        assert torch.equal(run(pipe), sparse)
        assert {(r.step, r.branch) for r in session.stats.records.values()} == {(0, "cond_uncond"), (1, "cond_uncond")}
        ours = {name for name, found in pipe.transformer.attn_processors.items() if hasattr(found, "slot")}
        assert ours == {f"transformer_blocks.{index}.attn1.processor" for index in range(2)}
    after = pipe.transformer.attn_processors
    assert all(after[name] is processor for name, processor in before.items())
    assert torch.equal(run(pipe), dense)


@pytest.mark.parametrize(("kind", "frames"), [("t2v", 0), ("i2v", 1)])
def test_the_frame_of_a_condition_image_stays_dense(kind, frames):
    pipe, grids = build(kind), []
    with fastdit.enable(pipe, small()) as session:
        handle = pipe.transformer.register_forward_pre_hook(
            lambda *_: grids.append(session.current_forward(0).grid)  # behind ours: the call has begun
        )
        run(pipe)
        handle.remove()
    grid = fastdit.VideoGrid(frames=3, height=8, width=8, kept_frames=frames, dense_frames=frames)
    assert grids == [grid, grid]


def test_a_longer_run_of_a_pipeline_that_shares_transformer_and_scheduler():
    pipe = build("t2v")
    other = LTXImageToVideoPipeline.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    with fastdit.enable(pipe, small(schedule=fastdit.Schedule(dense_steps=0.5, dense_layers=()))) as session:
        run(pipe, steps=1)
        run(other, steps=4)
        assert {(r.step, r.dense_reason) for r in session.stats.records.values()} == {
            (0, "dense_steps"), (1, "dense_steps"), (2, None), (3, None)
        }  # fmt: skip


def test_our_processor_with_dense_attention_is_bit_identical(rng):
    transformer = build().transformer
    attn = transformer.transformer_blocks[0].attn1
    hidden = torch.randn(2, 24, 32, generator=rng)
    rotary = transformer.rope(hidden, 2, 3, 4, (1.0, 32, 32))
    query, key, value = project(attn, hidden, rotary)
    out = nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (query, key, value)))
    ours = attn.to_out[0](out.transpose(1, 2).flatten(2, 3))
    assert torch.equal(ours, attn.processor(attn, hidden, image_rotary_emb=rotary))


def test_the_rotary_embedding_reaches_our_processor(caplog):
    """`LTXAttention` drops arguments that it does not find by name."""
    pipe = build()
    seen = []
    with fastdit.enable(pipe, small(density=1.0)):
        processor = pipe.transformer.transformer_blocks[0].attn1.processor
        inner = processor.attend
        processor.attend = lambda query, key, value: seen.append(query) or inner(query, key, value)
        run(pipe, steps=1)
    assert seen[0].shape == (2, 192, 4, 8)
    assert "will be ignored" not in caplog.text


@pytest.mark.parametrize("call", [{"size": (32, 64), "num_frames": 17}, {"guidance_scale": 1.0}, {"size": (32, 96)}])
def test_odd_grids_and_guidance_off(call):
    pipe = build()
    dense = run(pipe, steps=1, **call)
    with fastdit.enable(pipe, small(density=1.0)) as session:
        assert (run(pipe, steps=1, **call) - dense).abs().max() <= 1e-5 * dense.abs().max()
        branch_rows = 1 if "guidance_scale" in call else 2
        assert {r.dense_pairs for r in session.stats.records.values()} == {branch_rows * 4 * dense.shape[1] ** 2}


def test_batches():
    pipe = build()
    call = {"prompt": ["dance monkey", "a red circle"], "negative_prompt": ["negative"] * 2, "steps": 1}
    dense = run(pipe, **call)
    with fastdit.enable(pipe, small(density=1.0)):
        assert (run(pipe, **call) - dense).abs().max() <= 1e-5 * dense.abs().max()


# The stock pipeline's own call of its scheduler warns.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(
    ("frame_indices", "frames", "given"), [((), 3, 0), ((0,), 3, 1), ((8,), 4, 2), ((0, 8), 4, 2), ((8, 16), 5, 3)]
)
def test_conditions_in_place_of_frames_and_before_the_video(frame_indices, frames, given):
    pipe, grids = build("condition"), []
    call = {"steps": 1}
    if frame_indices:
        image = Image.new("RGB", (32, 32), (10, 90, 200))
        call["conditions"] = [LTXVideoCondition(image=image, frame_index=place) for place in frame_indices]
    dense = run(pipe, **call)
    with fastdit.enable(pipe, small(density=1.0)) as session:
        handle = pipe.transformer.register_forward_pre_hook(
            lambda *_: grids.append(session.current_forward(0).grid)  # behind ours: the call has begun
        )
        assert (run(pipe, **call) - dense).abs().max() <= 1e-5 * dense.abs().max()
        handle.remove()
    grid = fastdit.VideoGrid(frames=frames, height=8, width=8, kept_frames=given, dense_frames=given)
    assert grids == [grid]


def test_coordinates_are_read_once_per_run_and_refused_if_irregular():
    reader = CoordinateReader()
    places = torch.stack(torch.meshgrid(torch.arange(2), torch.arange(3), torch.arange(4), indexing="ij"))
    coordinates = places.flatten(1).expand(2, 3, 24).float()
    assert reader.read(coordinates) == (2, 3, 4, 0)
    assert reader.read(coordinates) is reader.read(coordinates)
    assert reader.read(torch.cat([coordinates[:, :, 12:], coordinates], dim=2)) == (3, 3, 4, 1)
    for wrong in (coordinates[:, :, :-1], coordinates.flip(2).roll(5, 2), places.transpose(2, 3).flatten(1)[None]):
        with pytest.raises(fastdit.UnsupportedModelError, match="no whole frames"):
            reader.read(wrong)


@pytest.mark.parametrize(
    ("times", "before"),
    [
        ([0, 1, 9, 17], 0),
        ([9, 0, 1, 9, 17], 1),
        ([1, 9, 17, 0, 1, 9, 17], 3),  # two conditions
        ([0, 1, 9, 17, 0, 1, -8], 0),  # a long video: what it overlaps with and its reference image come last
        ([0, 1, 9, 17, -8], 0),
        ([0], 0),
    ],
)
def test_the_video_is_found_among_its_conditions(times, before):
    frame = torch.cartesian_prod(torch.arange(3.0), torch.arange(4.0)).T
    coordinates = torch.cat([torch.cat([torch.full((1, 12), float(time)), frame]) for time in times], 1)
    assert CoordinateReader().read(coordinates[None]) == (len(times), 3, 4, before)


def test_an_unknown_processor_is_refused():
    class Foreign:
        def __call__(self, attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb):
            return hidden_states

    pipe = build()
    attn = pipe.transformer.transformer_blocks[1].attn1
    theirs, attn.processor = attn.processor, Foreign()
    with pytest.raises(fastdit.UnsupportedModelError, match="accepted are LTXVideoAttnProcessor"):
        fastdit.enable(pipe, small())
    attn.processor = theirs
