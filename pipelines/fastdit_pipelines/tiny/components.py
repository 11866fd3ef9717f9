"""The parts of the bundled model: a small but genuine Wan pipeline, built without any download."""

from __future__ import annotations

import string
from itertools import chain

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

from fastdit_pipelines.tiny.placed_transformer import PlacedWanTransformer3DModel
from fastdit_pipelines.tiny.word_order import mark_word_order
from fastdit_pipelines.tiny.world import BACKGROUNDS, COLORS, DIRECTIONS, RELATIONS, SHAPES, SPEEDS

TEXT_DIM = 64
LATENT_CHANNELS = 6
FLOW_SHIFT = 3.0
_FUNCTION_WORDS = ("a", "an", "and", "moving", "on", "background", "the", "of")


def build_tokenizer() -> T5Tokenizer:
    """Unigram tokenizer: every word of the caption grammar is one piece, anything else falls back to letters."""
    related = " ".join(RELATIONS).split()
    words = chain(_FUNCTION_WORDS, SHAPES, COLORS, DIRECTIONS, BACKGROUNDS, filter(None, SPEEDS), related)
    letters = string.ascii_lowercase + string.digits + ".,!?'-" + string.ascii_uppercase
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -6.0) for letter in letters]
    pieces += [("▁" + word, -1.0) for word in dict.fromkeys(words)]
    return T5Tokenizer(vocab=pieces, extra_ids=0)


def build_text_encoder(vocab_size: int) -> UMT5EncoderModel:
    """A two-layer UMT5 encoder of width `TEXT_DIM`."""
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=vocab_size,
            d_model=TEXT_DIM,
            d_kv=16,
            d_ff=128,
            num_layers=2,
            num_decoder_layers=2,
            num_heads=4,
            relative_attention_num_buckets=16,
            dropout_rate=0.0,
            is_encoder_decoder=False,
            use_cache=False,
            pad_token_id=0,
            eos_token_id=1,
            decoder_start_token_id=0,
        )
    ).eval()


def build_vae() -> AutoencoderKLWan:
    """Causal video autoencoder: 4 x 4 pixels x 2 frames -> one latent of `LATENT_CHANNELS` values."""
    return AutoencoderKLWan(
        base_dim=24,
        decoder_base_dim=24,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 1],
        num_res_blocks=1,
        attn_scales=[],
        temperal_downsample=[True],
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
        in_channels=12,
        out_channels=12,
        is_residual=True,
        patch_size=2,
        scale_factor_temporal=2,
        scale_factor_spatial=4,
    )


def build_transformer() -> PlacedWanTransformer3DModel:
    """Six blocks of width 128 with four heads of 32; one token is a 2 x 2 patch of latents."""
    transformer: PlacedWanTransformer3DModel = PlacedWanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=TEXT_DIM,
        freq_dim=128,
        ffn_dim=512,
        num_layers=6,
        cross_attn_norm=True,
        rope_max_seq_len=256,
    )
    return transformer


def build_scheduler() -> UniPCMultistepScheduler:
    """The solver of the published Wan pipelines."""
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=FLOW_SHIFT)


def build_pipeline(seed: int = 0) -> WanPipeline:
    """The whole pipeline with random weights.

    Args:
        seed: Seed of the initial weights. The global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = build_tokenizer()
        text_encoder = build_text_encoder(len(tokenizer))
        mark_word_order(text_encoder, tokenizer)
        return WanPipeline(
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            vae=build_vae().eval(),
            scheduler=build_scheduler(),
            transformer=build_transformer().eval(),
        )
