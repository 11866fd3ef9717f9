"""CogVideoX 2b, 5b and 1.5: joint attention over text, then video, with shared projections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import nn

from fastdit.errors import UnsupportedModelError
from fastdit.grid import VideoGrid
from fastdit.layer_slot import LayerSlot
from fastdit.session import Session
from fastdit_pipelines.call_arguments import argument
from fastdit_pipelines.diffusers_hook import attach_session
from fastdit_pipelines.processor_signature import check_signature
from fastdit_pipelines.stand_in import StandIn

PROCESSORS = ("CogVideoXAttnProcessor2_0", "FusedCogVideoXAttnProcessor2_0")
PARAMETERS = ("attn", "hidden_states", "encoder_hidden_states", "attention_mask", "image_rotary_emb")
FUSING_METHODS = ("fuse_qkv_projections", "unfuse_qkv_projections")

Rotary = tuple[torch.Tensor, torch.Tensor]


class CogVideoXSparseProcessor(StandIn):
    """Joint attention processor of CogVideoX, plain or fused, with the attention itself handed to fastdit.

    Args:
        original: The processor it stands in for; runs every dense call. Its class tells whether the layer projects
            with `to_qkv`: after unfusing, the layer keeps both kinds of weights.
        slot: This layer's view of the session.
    """

    def __init__(self, original: Any, slot: LayerSlot) -> None:
        super().__init__(original, slot)
        self.fused = any(base.__name__.startswith("Fused") for base in type(original).__mro__)

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: Rotary | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One attention layer, with the signature of `CogVideoXAttnProcessor2_0`.

        The layer passes on only what this signature names, so every name is spelt out.

        Args:
            attn: The layer.
            hidden_states: Video `[B, V, H * D]`.
            encoder_hidden_states: Text `[B, T, H * D]`.
            attention_mask: Refused in sparse calls; no pipeline gives one.
            image_rotary_emb: Cosine and sine `[V, D]`, for the video; `None` in the 2b model.

        Returns:
            Video and text, as given.
        """
        text_length = encoder_hidden_states.shape[1]
        batch, video_length, _ = hidden_states.shape
        if self.slot.wants_dense(text_length + video_length, batch, attn.heads):
            dense: tuple[torch.Tensor, torch.Tensor] = self.original(
                attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb
            )
            return dense
        if attention_mask is not None:
            raise UnsupportedModelError(
                f"{self.slot.name} is given an attention_mask: accepted in sparse calls is none; "
                "leave it out of attention_kwargs or call fastdit.disable(pipe)"
            )
        joint = torch.cat([encoder_hidden_states, hidden_states], 1)
        query, key, value = project(attn, joint, text_length, image_rotary_emb, fused=self.fused)
        # Stock CogVideoX calls PyTorch's attention whatever backend is set, and so do heads that stay dense here.
        out = self.slot.attend(query, key, value).flatten(2, 3)
        text, video = attn.to_out[1](attn.to_out[0](out)).split((text_length, video_length), 1)
        return video, text


def project(
    attn: Any, joint: torch.Tensor, text_length: int, rotary: Rotary | None, *, fused: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query, key and value `[B, S, H, D]` after norms and rotary embedding, through the module's own layers.

    Args:
        attn: The layer.
        joint: Text, then video, `[B, S, H * D]`.
        text_length: Text tokens, which are not rotated.
        rotary: Cosine and sine `[S - text_length, D]`, or `None`.
        fused: Whether to use the projection `to_qkv`.
    """
    query, key, value = (
        attn.to_qkv(joint).chunk(3, -1) if fused else (attn.to_q(joint), attn.to_k(joint), attn.to_v(joint))
    )
    query, key, value = (x.unflatten(2, (attn.heads, -1)) for x in (query, key, value))
    if attn.norm_q is not None:
        query = attn.norm_q(query)
    if attn.norm_k is not None:
        key = attn.norm_k(key)
    if rotary is not None:
        query, key = (rotate_video(x, text_length, rotary) for x in (query, key))
    return query, key, value


def rotate_video(x: torch.Tensor, text_length: int, rotary: Rotary) -> torch.Tensor:
    """Rotary embedding of all tokens of `[B, S, H, D]` but the first `text_length`."""
    video = apply_rotary_emb(x[:, text_length:], rotary, sequence_dim=1)
    return torch.cat([x[:, :text_length], video], 1)


class CogVideoXAdapter:
    """Adapter of `CogVideoXTransformer3DModel`: text, image, video and control to video."""

    family = "cogvideox"
    transformer_classes = ("CogVideoXTransformer3DModel",)

    def sites(self, transformer: nn.Module) -> list[tuple[str, nn.Module]]:
        """`transformer_blocks.<i>.attn1` of every block."""
        blocks: Any = transformer.transformer_blocks
        return [(f"transformer_blocks.{index}.attn1", block.attn1) for index, block in enumerate(blocks)]

    def grid(self, transformer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> VideoGrid:
        """Latents `[B, T, C, H, W]` divided by the patch sizes, behind the text `[B, L, C]`.

        Image-to-video has the image in extra channels of frame 0, whose keys are always kept. FunControl has extra
        channels too, but only image-to-video passes `ofs`, be it as `None`.
        """
        latents = argument(args, kwargs, 0, "hidden_states")
        text = argument(args, kwargs, 1, "encoder_hidden_states")
        config: Any = transformer.config
        frames = latents.shape[1] // (config.patch_size_t or 1)
        has_image = config.in_channels > config.out_channels and "ofs" in kwargs
        return VideoGrid(
            frames=frames,
            height=latents.shape[3] // config.patch_size,
            width=latents.shape[4] // config.patch_size,
            text_length=text.shape[1],
            text_first=True,
            kept_frames=min(int(has_image), frames - 1),
        )

    def processor(self, original: Any, slot: LayerSlot) -> CogVideoXSparseProcessor:
        """The stand-in for one layer."""
        check_signature(original, PROCESSORS, PARAMETERS)
        return CogVideoXSparseProcessor(original, slot)

    def attach(self, transformer: nn.Module, session: Session, number: int) -> Callable[[], None]:
        """Listen through Diffusers' hooks, and stay in place when projections are fused or unfused."""
        detach = attach_session(transformer, session, number, self.grid)
        release = follow_fusing(transformer)

        def undo() -> None:
            release()
            detach()

        return undo


def follow_fusing(transformer: nn.Module) -> Callable[[], None]:
    """Stand in for whatever processors fusing and unfusing of projections leave behind, until the way back is called.

    The way back leaves each layer the processor that ours stands in for by then.
    """
    for name in FUSING_METHODS:
        setattr(transformer, name, FusingSwitch(transformer, name))

    def release() -> None:
        for name in FUSING_METHODS:
            if isinstance(vars(transformer).get(name), FusingSwitch):
                delattr(transformer, name)
        take_off(transformer)

    return release


class FusingSwitch:
    """Shadows `fuse_qkv_projections` or its counterpart on one transformer, so that it meets the original processors.

    The stock method overwrites all processors, and its counterpart puts back those it has found. A deep copy of the
    transformer has a switch of its own, which finds none of our processors and does what the stock method does.

    Args:
        transformer: Root module.
        name: Name of the method.
    """

    def __init__(self, transformer: nn.Module, name: str) -> None:
        self._transformer = transformer
        self._name = name

    def __call__(self) -> None:
        """Call the stock method, then stand in for the processors that it has put into our layers."""
        ours = take_off(self._transformer)
        try:
            getattr(type(self._transformer), self._name)(self._transformer)
        finally:
            for module, processor in ours:
                module.processor = CogVideoXSparseProcessor(module.processor, processor.slot)


def take_off(transformer: nn.Module) -> list[tuple[Any, CogVideoXSparseProcessor]]:
    """Give the layers that have our processors the originals of these; returns the layers with ours."""
    modules: list[Any] = list(transformer.modules())
    found = [(module, getattr(module, "processor", None)) for module in modules]
    ours = [(module, processor) for module, processor in found if isinstance(processor, CogVideoXSparseProcessor)]
    for module, processor in ours:
        module.processor = processor.original
    return ours
