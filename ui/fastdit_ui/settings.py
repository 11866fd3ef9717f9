"""What a server is started with; frozen, and checked at construction."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from fastdit.errors import ConfigError
from fastdit.validation import check_count

LOCALHOST = "127.0.0.1"
# Bounds of what a page may ask for, so that a slip of the hand does not fill the memory of the server.
MAX_SIDE, MAX_FRAMES, MAX_STEPS, MAX_PROMPT = 2048, 1000, 100, 4000
MAX_IMAGE_PIXELS = 40_000_000


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Settings of one server.

    Args:
        output_dir: Where runs and plans are kept; the only folder that is written to.
        models: What may be run: bundled names, Diffusers folders, or Hub ids. The first is the default.
        host: Address to bind to; other machines reach the server only if this is changed.
        port: Port; `None` for the first free one from 7860.
        share: Whether to open a public link through Gradio's relay.
        mcp: Whether to offer the endpoints as MCP tools.
        max_upload_mb: Largest upload, in megabytes.
        max_waiting: Jobs that may wait; further ones are refused.
        baseline_mb: Memory for dense runs that are kept for comparisons, in megabytes.
    """

    output_dir: Path
    models: tuple[str, ...] = ("tiny",)
    host: str = LOCALHOST
    port: int | None = None
    share: bool = False
    mcp: bool = False
    max_upload_mb: int = 20
    max_waiting: int = 100
    baseline_mb: int = 1024

    def __post_init__(self) -> None:
        object.__setattr__(self, "output_dir", Path(self.output_dir).expanduser().resolve())
        if not self.models or len(set(self.models)) != len(self.models):
            raise ConfigError(f"models={self.models!r}: accepted is at least one model, each once")
        if not re.fullmatch(r"[A-Za-z0-9.:_-]+", self.host):
            raise ConfigError(f"host={self.host!r}: accepted is an address such as 127.0.0.1 or 0.0.0.0")
        if self.port is not None and not 1 <= self.port <= 65535:
            raise ConfigError(f"port={self.port}: accepted is a number from 1 to 65535")
        for name in ("max_upload_mb", "max_waiting", "baseline_mb"):
            check_count(name, getattr(self, name), 1)

    def check_model(self, model: str) -> str:
        """The model, if the server was started with it.

        Raises:
            ConfigError: It was not; pages cannot load anything else.
        """
        if model not in self.models:
            raise ConfigError(
                f"model={str(model)[:80]!r}: this server was started with {', '.join(map(repr, self.models))}; "
                "start it with --model to offer others"
            )
        return model
