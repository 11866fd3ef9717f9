"""Random Mochi pipelines, built without downloads."""

import warnings

import torch


def build(num_layers=2, heads=2, head_dim=8, force_zeros_for_empty_prompt=False, seed=0):
    """A random Mochi pipeline; its last layer is the one without text output.

    `force_zeros_for_empty_prompt` masks out all text of an empty negative prompt.
    """
    from diffusers import (
        AutoencoderKLMochi,
        FlowMatchEulerDiscreteScheduler,
        MochiPipeline,
        MochiTransformer3DModel,
    )

    from fastdit_pipelines.tiny.components import TEXT_DIM, build_text_encoder, build_tokenizer

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = build_tokenizer()
        transformer = MochiTransformer3DModel(
            patch_size=2,
            num_attention_heads=heads,
            attention_head_dim=head_dim,
            num_layers=num_layers,
            pooled_projection_dim=16,
            in_channels=12,
            out_channels=None,
            qk_norm="rms_norm",
            text_embed_dim=TEXT_DIM,
            time_embed_dim=4,
            activation_fn="swiglu",
            max_sequence_length=16,
        ).eval()
        # They start at zero, which would turn nothing.
        torch.nn.init.normal_(transformer.pos_frequencies, std=0.5)
        pipe = MochiPipeline(
            tokenizer=tokenizer,
            text_encoder=build_text_encoder(len(tokenizer)),
            vae=AutoencoderKLMochi(
                latent_channels=12,
                out_channels=3,
                encoder_block_out_channels=(32, 32, 32, 32),
                decoder_block_out_channels=(32, 32, 32, 32),
                layers_per_block=(1, 1, 1, 1, 1),
            ).eval(),
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(),
            force_zeros_for_empty_prompt=force_zeros_for_empty_prompt,
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe, steps=4, seed=0, size=(32, 48), num_frames=19, **kwargs):
    """Latents `[B, C, T, H, W]` of a short run."""
    arguments = {
        "prompt": "dance monkey",
        "negative_prompt": "",
        "guidance_scale": 3.0,
        "height": size[0],
        "width": size[1],
        "num_frames": num_frames,
        "num_inference_steps": steps,
        "max_sequence_length": 16,
        "output_type": "latent",
        "generator": torch.Generator("cpu").manual_seed(seed),
        **kwargs,
    }
    with warnings.catch_warnings():
        # The rotary angles are taken under an autocast to fp32, which a CPU does not know.
        warnings.filterwarnings("ignore", "In CPU autocast", UserWarning)
        return pipe(**arguments).frames
