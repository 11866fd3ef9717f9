"""The model: latents in, latents out."""

import torch
import torch.nn.functional as F
from torch import nn


class AcmeProcessor:
    """Dense self-attention over the video tokens."""

    def __call__(self, attn, tokens):
        query, key, value = (x.transpose(1, 2) for x in attn.project(tokens))
        out = F.scaled_dot_product_attention(query, key, value)
        return attn.out(out.transpose(1, 2).flatten(2))


class AcmeAttention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.processor = AcmeProcessor()

    def project(self, tokens):
        """Query, key and value, each `[B, S, H, D]`."""
        return [x.unflatten(2, (self.heads, -1)) for x in self.qkv(tokens).chunk(3, dim=-1)]

    def forward(self, tokens):
        return self.processor(self, tokens)


class AcmeTransformer(nn.Module):
    def __init__(self, width=32, heads=2, layers=2):
        super().__init__()
        self.layers = nn.ModuleList(AcmeAttention(width, heads) for _ in range(layers))

    def forward(self, latents):
        """Latents `[B, T, H, W, C]`, one token each."""
        tokens = latents.flatten(1, 3)
        for layer in self.layers:
            tokens = tokens + layer(tokens)
        return torch.unflatten(tokens, 1, latents.shape[1:4])
