"""Trains the bundled model from scratch: `python -m fastdit_pipelines.tiny.train --output DIR`.

Runs on a CPU or, with `--device cuda`, on a GPU; shows progress, and continues where it was stopped when started
again with the same directory.
"""

from __future__ import annotations

from pathlib import Path

import cyclopts

from fastdit_pipelines.tiny.components import build_pipeline
from fastdit_pipelines.tiny.train_transformer import TransformerTraining, train_transformer
from fastdit_pipelines.tiny.train_vae import LONG_CLIPS, SHORT_CLIPS, set_latent_statistics, train_vae

app = cyclopts.App(help=__doc__, result_action="return_none")


@app.default
def train(
    output: Path,
    *,
    transformer: TransformerTraining = TransformerTraining(),  # noqa: B008 (frozen)
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Train the autoencoder, then the transformer with its text encoder, and save the pipeline.

    Args:
        output: Folder for checkpoints, loss curves and, in `pipeline/`, the result.
        transformer: Settings of the transformer.
        seed: Seed of the initial weights.
        device: Where to train the transformer; the autoencoder is trained on the CPU.
    """
    pipe = build_pipeline(seed)
    train_vae(pipe.vae, SHORT_CLIPS, output, "vae_short")
    train_vae(pipe.vae, LONG_CLIPS, output, "vae_long")
    set_latent_statistics(pipe.vae)
    train_transformer(pipe.to(device), transformer, output)
    pipe.to("cpu").save_pretrained(output / "pipeline")


if __name__ == "__main__":
    app()
