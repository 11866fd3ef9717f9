"""The training of the bundled model, a few steps of it: it learns, and it resumes on the same curve."""

import json

import pytest
import torch

from fastdit.errors import ConfigError
from fastdit_pipelines.tiny import train_transformer as transformer_module
from fastdit_pipelines.tiny import train_vae as vae_module
from fastdit_pipelines.tiny.caption_padding import padded_captions
from fastdit_pipelines.tiny.clip_pool import ClipSize
from fastdit_pipelines.tiny.components import build_pipeline
from fastdit_pipelines.tiny.frame_subset import SubsetDraw, draw_frames, placed_frames
from fastdit_pipelines.tiny.muon import Muon
from fastdit_pipelines.tiny.train_transformer import Stage, TransformerTraining, train_transformer
from fastdit_pipelines.tiny.train_vae import VaeTraining, Window, set_latent_statistics, train_vae

VAE = VaeTraining(
    num_steps=20, windows=(Window(batch_size=1, num_frames=5, size=16),), learning_rate=2e-3, save_every=10
)


def stage(num_steps):
    sizes = (
        ClipSize(num_frames=5, size=32, batch_size=4, pool_size=16, weight=0.5),
        ClipSize(num_frames=9, size=16, batch_size=2, pool_size=8, weight=0.5, latent_frames=2),
    )
    return Stage(clip_sizes=sizes, num_steps=num_steps, flow_shift=3.0, rate=1.0, final_rate=0.5)


TRANSFORMER = TransformerTraining(stages=(stage(15), stage(25)), save_every=10)


def curve(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


class Killed(Exception):
    pass


def killed_after(function, calls):
    """The same function, dying at one call more than `calls`."""
    count = []

    def wrapper(*args):
        count.append(1)
        if len(count) > calls:
            raise Killed
        return function(*args)

    return wrapper


@pytest.mark.slow
def test_the_autoencoder_resumes_on_the_same_curve(tmp_path, monkeypatch):
    whole = train_vae(build_pipeline().vae, VAE, tmp_path / "whole", "vae")
    with monkeypatch.context() as patched:
        patched.setattr(vae_module, "reconstruction_loss", killed_after(vae_module.reconstruction_loss, 15))
        with pytest.raises(Killed):
            train_vae(build_pipeline().vae, VAE, tmp_path / "parts", "vae")
    resumed = train_vae(build_pipeline(seed=5).vae, VAE, tmp_path / "parts", "vae")
    assert curve(tmp_path / "whole" / "vae_loss.jsonl") == curve(tmp_path / "parts" / "vae_loss.jsonl")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.slow
def test_the_transformer_learns_and_resumes_on_the_same_curve(tmp_path, monkeypatch):
    def fresh(seed=0):
        pipe = build_pipeline(seed)
        pipe.vae = vae
        return pipe

    vae = build_pipeline().vae
    set_latent_statistics(vae, num_clips=4)
    whole = train_transformer(fresh(), TRANSFORMER, tmp_path / "whole")
    points = curve(tmp_path / "whole" / "transformer_loss.jsonl")
    # Twenty steps of two clips of two latent frames are too noisy to show that the loss falls.
    assert "9x16:2" in points[-1]
    means = [point["5x32"] for point in points if "5x32" in point]
    assert means[-1] < 0.98 * means[0]
    assert [point["stage"] for point in points] == [0, 1, 1, 1]
    with monkeypatch.context() as patched:
        dying = killed_after(transformer_module.flow_matching_loss, 17)
        patched.setattr(transformer_module, "flow_matching_loss", dying)
        with pytest.raises(Killed):
            train_transformer(fresh(), TRANSFORMER, tmp_path / "parts")
    resumed = train_transformer(fresh(seed=5), TRANSFORMER, tmp_path / "parts")
    again = curve(tmp_path / "parts" / "transformer_loss.jsonl")
    assert [point["loss"] for point in again] == [point["loss"] for point in points]
    for name, value in whole.transformer.state_dict().items():
        assert torch.equal(value, resumed.transformer.state_dict()[name]), name
    assert json.loads((tmp_path / "whole" / "transformer_config.json").read_text())["seed"] == TRANSFORMER.seed


def test_frames_of_a_subset_keep_their_places():
    transformer = build_pipeline().transformer
    frames = torch.tensor([0, 3, 11])
    whole = [table.view(12, 2, 2, -1) for table in transformer.rope(torch.zeros(1, 6, 12, 4, 4))]
    with placed_frames(transformer, frames):
        placed = transformer.rope(torch.zeros(1, 6, 3, 4, 4))
    for table, some in zip(whole, placed, strict=True):
        assert torch.equal(some.view(3, 2, 2, -1), table[frames])
    again = transformer.rope(torch.zeros(1, 6, 12, 4, 4))
    assert all(torch.equal(table.view_as(kept), kept) for table, kept in zip(again, whole, strict=True))


@pytest.mark.parametrize("neighbour_share", [0.0, 1.0])
def test_subsets_of_frames_are_sorted_distinct_and_reach_every_frame(neighbour_share):
    generator = torch.Generator().manual_seed(0)
    draw = SubsetDraw(span_share=0.0, neighbour_share=neighbour_share, first_frame_share=0.0)
    drawn = [draw_frames(7, 3, draw, generator) for _ in range(200)]
    assert all(bool((subset.diff() > 0).all()) and len(subset) == 3 for subset in drawn)
    assert set(torch.cat(drawn).tolist()) == set(range(7))
    assert all(bool((subset.diff() == 1).all()) for subset in drawn) == (neighbour_share == 1.0)
    draw = SubsetDraw(span_share=0.0, neighbour_share=neighbour_share, first_frame_share=1.0)
    with_first = [draw_frames(7, 3, draw, generator) for _ in range(50)]
    assert all(subset[0] == 0 and bool((subset.diff() > 0).all()) for subset in with_first)


def test_subsets_that_span_the_clip_are_even():
    draw = SubsetDraw(span_share=1.0, neighbour_share=0.0, first_frame_share=0.0)
    assert draw_frames(29, 9, draw, torch.Generator()).tolist() == [0, 4, 7, 10, 14, 18, 21, 24, 28]


@pytest.mark.parametrize("neighbour_share", [0.0, 1.0])
@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_frames_leave_out_the_first(count, neighbour_share):
    """Their rotary positions say nothing about where the clip begins."""
    draw = SubsetDraw(span_share=1.0 - neighbour_share, neighbour_share=neighbour_share, first_frame_share=1.0)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([draw_frames(7, count, draw, generator) for _ in range(200)])
    assert set(drawn.tolist()) == set(range(1, 7))


def test_shares_of_a_subset_that_pass_one_are_refused():
    with pytest.raises(ConfigError, match="at most 1"):
        SubsetDraw(span_share=0.6, neighbour_share=0.5)
    with pytest.raises(ConfigError, match="span_share"):
        SubsetDraw(span_share=-0.1)


@pytest.mark.parametrize("shape", [(16, 16), (48, 16), (16, 64)])
def test_muon_follows_the_one_of_torch(shape):
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.ones(shape)) for _ in range(2))
    optimizers = Muon([ours], lr=0.02), torch.optim.Muon([theirs], lr=0.02, weight_decay=0.01, momentum=0.95)
    for _ in range(4):
        gradient = torch.randn(shape)
        for weight, optimizer in zip((ours, theirs), optimizers, strict=True):
            weight.grad = gradient.clone()
            optimizer.step()
    moved = (theirs - 1).norm()
    # The other one iterates in bfloat16.
    assert (ours - theirs).norm() < 0.03 * moved


def test_short_captions_act_like_fully_padded_ones():
    pipe = build_pipeline()
    latents, level = torch.randn(1, 6, 2, 4, 4), torch.tensor([500.0])

    def velocity(length):
        text = pipe._get_t5_prompt_embeds(["a red circle moving left"], max_sequence_length=length)
        with torch.no_grad():
            return pipe.transformer(latents, level, text, return_dict=False)[0]

    full, short = velocity(512), velocity(28)
    processors = [block.attn2.processor for block in pipe.transformer.blocks]
    with padded_captions(pipe.transformer, 28):
        padded = velocity(28)
    assert [block.attn2.processor for block in pipe.transformer.blocks] == processors
    torch.testing.assert_close(padded, full, rtol=1e-4, atol=1e-5)
    assert (short - full).abs().max() > 10 * (padded - full).abs().max()


def test_building_leaves_the_global_random_state_alone():
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    first, second = build_pipeline(), build_pipeline()
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, value in first.transformer.state_dict().items():
        assert torch.equal(value, second.transformer.state_dict()[name])


def distance_from_a_bag_of_words(pipe):
    """How far each word's vector is from the nearest one of the caption with the colours exchanged, over its norm."""
    captions = [
        f"a {first} circle moving right above a {second} square moving left on a dark background"
        for first, second in (("red", "blue"), ("blue", "red"))
    ]
    here, there = (pipe._get_t5_prompt_embeds([caption], max_sequence_length=24)[0][:16] for caption in captions)
    return torch.cdist(here, there).min(1).values / here.norm(dim=1)


@torch.no_grad()
def test_a_fresh_text_encoder_tells_the_first_object_from_the_second():
    apart = distance_from_a_bag_of_words(build_pipeline())
    colors = [1, 7]
    assert apart[colors].min() > 0.15


def test_places_enter_the_embedding_alike_at_every_size():
    embedding = build_pipeline().transformer.patch_embedding
    with torch.no_grad():
        small, large = (embedding(torch.zeros(1, 6, 1, 2 * side, 2 * side)) for side in (6, 18))
    # The middle of a tile of the small grid is the middle of a tile of the large one.
    torch.testing.assert_close(small, large[..., 1::3, 1::3])
    assert (small[..., 0, :] - small[..., -1, :]).abs().max() > 0.1
