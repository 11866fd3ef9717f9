"""Gives a T5 text encoder a sense of word order to start from: two heads that see only one side of a word."""

from __future__ import annotations

from typing import Any

import torch
from transformers import T5Tokenizer, UMT5EncoderModel

from fastdit_pipelines.tiny.world import RELATIONS, SceneSampler

# Below this bias a key gets e**-8 of the weight of a key on the other side.
_BLIND = -8.0
# Typical share of attention that one of a dozen earlier words gets in a head that weighs them alike.
_SHARE = 0.12
_FADED = 0.01


@torch.no_grad()
def mark_word_order(encoder: UMT5EncoderModel, tokenizer: T5Tokenizer, strength: float = 0.7) -> None:
    """Set two heads of the last layer so that a word tells whether a relation word stands before or after it.

    One head weighs all words to the left alike, the other all words to the right; their value is 1 on the words that
    join two noun phrases ("and", "above", "of") and 0 on others, and each writes into a direction that hidden states
    hardly use. Without it the encoder of the bundled model learnt to be a bag of words, because captions with one
    object ask for no more: exchanging the colours of two objects changed the velocity by 3e-5 of its largest value.
    Captions of one object are encoded as before, but for what the two heads wrote earlier.

    Args:
        encoder: Changed in place; with weights of any kind, fresh ones or trained ones.
        tokenizer: Its tokenizer.
        strength: Size of what a head writes, as a share of the hidden states' norm.
    """
    captions = _captions()
    hidden, is_relation = _hidden_states(encoder, tokenizer, captions)
    block = encoder.encoder.block[-1].layer[0]
    attention, normed = block.SelfAttention, block.layer_norm(hidden)
    size = normed.shape[-1]
    gram = normed.T @ normed + 1e-2 * torch.eye(size)
    reader = torch.linalg.solve(gram, normed.T @ is_relation)
    unused = torch.linalg.svd(hidden, full_matrices=False).Vh[-2:]
    gain = (strength * hidden.norm(dim=1).mean() / _SHARE).sqrt()
    width = attention.key_value_proj_dim
    buckets = attention.relative_attention_bias.weight
    half = buckets.shape[0] // 2  # buckets below lie to the left, the first of them is the word itself
    for head, (left, direction) in enumerate(zip((True, False), unused, strict=True)):
        rows = slice(head * width, (head + 1) * width)
        for weight in (attention.q.weight[rows], attention.k.weight[rows], attention.v.weight[rows]):
            weight.mul_(_FADED)
        attention.o.weight[:, rows].mul_(_FADED)
        attention.v.weight[head * width] = reader * gain
        attention.o.weight[:, head * width] = direction * gain
        buckets[:half, head] = 0.0 if left else _BLIND
        buckets[half:, head] = _BLIND if left else 0.0
        buckets[0, head] = 0.0


def _captions() -> list[str]:
    one, two = SceneSampler(1, two_object_share=0.0), SceneSampler(1, two_object_share=1.0)
    return [sampler.sample().caption for sampler in (one, two) for _ in range(100)]


def _hidden_states(
    encoder: UMT5EncoderModel, tokenizer: T5Tokenizer, captions: list[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """What enters the last layer, `[words, d_model]`, and 1 for relation words, 0 for others `[words]`."""
    pieces = ["▁" + relation.split()[-1] for relation in RELATIONS]
    relations = torch.tensor(tokenizer.convert_tokens_to_ids(pieces))
    grabbed: list[torch.Tensor] = []

    def grab(module: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        grabbed.append(arguments[0][0])

    hook = encoder.encoder.block[-1].register_forward_pre_hook(grab)
    flags = []
    for caption in captions:
        ids = tokenizer(caption, return_tensors="pt").input_ids
        encoder(ids)
        flags.append(torch.isin(ids[0], relations).float())
    hook.remove()
    return torch.cat(grabbed), torch.cat(flags)
