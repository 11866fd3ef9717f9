"""What the stand-in processors of families with separate self-attention share."""

from __future__ import annotations

import torch

from fastdit.attend import DenseAttention
from fastdit.errors import UnsupportedModelError
from fastdit_pipelines.context_parallel import attend_ulysses, check_parallel
from fastdit_pipelines.dense_backend import dense_attention
from fastdit_pipelines.diffusers_hook import forwarded
from fastdit_pipelines.stand_in import StandIn


class SparseProcessor(StandIn):
    """A stand-in whose original attends through Diffusers' dispatcher, to video tokens alone."""

    # Diffusers writes both on processors; they belong to the original, which runs the dense calls.
    _attention_backend = forwarded("_attention_backend")
    _parallel_config = forwarded("_parallel_config")

    def dense_backend(self) -> DenseAttention:
        """The dense attention that the pipeline is set to."""
        return dense_attention(self._attention_backend)

    def wants_dense(self, hidden_states: torch.Tensor, heads: int, mask: torch.Tensor | None = None) -> bool:
        """Whether this call goes to the original processor.

        Args:
            hidden_states: `[B, S, C]`, the self-attention sequence; under context parallelism this process's part.
            heads: Attention heads.
            mask: What the model would mask self-attention with; `None` in every supported mode.

        Raises:
            UnsupportedModelError: The call is masked, or shared among processes in a way that is not supported.
        """
        if mask is not None:
            raise UnsupportedModelError(
                f"layer {self.slot.name} masks its self-attention: this mode of the model is not supported; "
                "call fastdit.disable(pipe) to go on"
            )
        batch, length, _ = hidden_states.shape
        degree = check_parallel(self._parallel_config, self.slot)
        return self.slot.wants_dense(length * degree, batch, heads // degree)

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Sparse attention; heads that stay dense run the backend that the pipeline is set to.

        Args:
            query: `[B, S, H, D]`, after norms and rotary embedding.
            key: `[B, S, H, D]`, likewise.
            value: `[B, S, H, D]`.

        Returns:
            `[B, S, H * D]` in the dtype of `query`.
        """
        if self._parallel_config is None:
            out = self.slot.attend(query, key, value, self.dense_backend())
        else:
            out = attend_ulysses(query, key, value, self.slot, self.dense_backend(), self._parallel_config)
        return out.flatten(2, 3).type_as(query)
