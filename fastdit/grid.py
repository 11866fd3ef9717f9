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
    """

    frames: int
    height: int
    width: int
    text_length: int = 0
    text_first: bool = False

    def __post_init__(self) -> None:
        if min(self.frames, self.height, self.width) < 1 or self.text_length < 0:
            raise InvalidInputError(
                f"grid frames={self.frames}, height={self.height}, width={self.width}, text_length={self.text_length}: "
                "accepted are positive sizes and a non-negative text length"
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
    def segments(self) -> tuple[int, ...]:
        """Token counts that start on tile boundaries: video, then text if there is any."""
        return (self.video_length, self.text_length) if self.text_length else (self.video_length,)
