"""The geometry of one forward call: how many tokens in time, height, width and text, and where the text sits."""

from __future__ import annotations

from dataclasses import dataclass

from fastdit.errors import InvalidInputError


@dataclass(frozen=True, kw_only=True)
class VideoGrid:
    """Tokens of a video in frame-major order, with optional text tokens in the same sequence.

    Token `(t, y, x)` has video index `(t * height + y) * width + x`.

    Args:
        frames: Latent frames after patching.
        height: Token rows of a frame.
        width: Token columns of a frame.
        text_length: Text tokens in the attention sequence (0 for models with separate cross-attention).
        text_first: Whether the model puts text before the video.
        kept_frames: First frames whose keys every query sees at level 0, whatever the method (a condition image). They
            share the second key segment with the text, so that no selector has to know of them.
        dense_frames: The first ones of these, whose queries also see everything (a condition image that is part of the
            sequence unchanged, as in HunyuanVideo's `token_replace`).
    """

    frames: int
    height: int
    width: int
    text_length: int = 0
    text_first: bool = False
    kept_frames: int = 0
    dense_frames: int = 0

    def __post_init__(self) -> None:
        if min(self.frames, self.height, self.width) < 1 or self.text_length < 0:
            raise InvalidInputError(
                f"grid frames={self.frames}, height={self.height}, width={self.width}, text_length={self.text_length}: "
                "accepted are positive sizes and a non-negative text length"
            )
        if not 0 <= self.dense_frames <= self.kept_frames < self.frames:
            raise InvalidInputError(
                f"dense_frames={self.dense_frames}, kept_frames={self.kept_frames} of {self.frames} frames: accepted "
                "is 0 <= dense_frames <= kept_frames < frames"
            )

    @property
    def video_length(self) -> int:
        """Video tokens."""
        return self.frames * self.height * self.width

    @property
    def video_start(self) -> int:
        """Place of the first video token in the model's sequence."""
        return self.text_length if self.text_first else 0

    @property
    def text_start(self) -> int:
        """Place of the first text token in the model's sequence."""
        return 0 if self.text_first else self.video_length

    @property
    def length(self) -> int:
        """All tokens of the sequence."""
        return self.video_length + self.text_length

    @property
    def kept_length(self) -> int:
        """Video tokens whose keys every query sees."""
        return self.kept_frames * self.height * self.width

    @property
    def query_segments(self) -> tuple[int, ...]:
        """Token counts of queries that start on tile boundaries: sparse ones, then those that see all keys."""
        return self._segments(self.dense_frames)

    @property
    def key_segments(self) -> tuple[int, ...]:
        """Token counts of keys that start on tile boundaries: those to choose from, then those always kept."""
        return self._segments(self.kept_frames)

    def _segments(self, frames: int) -> tuple[int, ...]:
        apart = frames * self.height * self.width
        first, second = self.video_length - apart, apart + self.text_length
        return (first, second) if second else (first,)
