"""Random CogVideoX pipelines of all generations and tasks, built without downloads."""

import torch

SIZES = {
    # CogVideoX 2b: additive positions; 5b: rotary; 1.5: rotary, two latent frames per token.
    "2b": {"num_attention_heads": 4, "attention_head_dim": 8},
    "5b": {"num_attention_heads": 2, "attention_head_dim": 16, "use_rotary_positional_embeddings": True},
    "1.5": {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "use_rotary_positional_embeddings": True,
        "patch_size_t": 2,
        "patch_bias": False,
        "sample_width": 300,
        "sample_height": 300,
        "sample_frames": 81,
    },
}
TASKS = ("t2v", "i2v", "v2v", "control")


def build(model="5b", task="t2v", num_layers=2, seed=0, **transformer):
    """A random CogVideoX pipeline.

    `model` is "2b", "5b" or "1.5", `task` one of `TASKS`; other arguments go to the transformer.
    """
    import diffusers

    from fastdit_pipelines.tiny.components import TEXT_DIM, build_text_encoder, build_tokenizer

    latent_channels = 4
    arguments = {
        "in_channels": latent_channels * (2 if task in ("i2v", "control") else 1),
        "out_channels": latent_channels,
        "time_embed_dim": 2,
        "text_embed_dim": TEXT_DIM,
        "num_layers": num_layers,
        "sample_width": 2,
        "sample_height": 2,
        "sample_frames": 9,
        "patch_size": 2,
        "temporal_compression_ratio": 4,
        "max_text_seq_length": 16,
        **SIZES[model],
        **transformer,
    }
    schedulers = {
        "2b": lambda: diffusers.CogVideoXDDIMScheduler(),
        "5b": lambda: diffusers.CogVideoXDPMScheduler(
            snr_shift_scale=1.0,
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
        ),
    }
    pipelines = {
        "t2v": diffusers.CogVideoXPipeline,
        "i2v": diffusers.CogVideoXImageToVideoPipeline,
        "v2v": diffusers.CogVideoXVideoToVideoPipeline,
        "control": diffusers.CogVideoXFunControlPipeline,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = build_tokenizer()
        pipe = pipelines[task](
            tokenizer=tokenizer,
            text_encoder=build_text_encoder(len(tokenizer)),
            vae=diffusers.AutoencoderKLCogVideoX(
                in_channels=3,
                out_channels=3,
                latent_channels=latent_channels,
                down_block_types=("CogVideoXDownBlock3D",) * 4,
                up_block_types=("CogVideoXUpBlock3D",) * 4,
                block_out_channels=(8, 8, 8, 8),
                layers_per_block=1,
                norm_num_groups=2,
                temporal_compression_ratio=4,
            ).eval(),
            transformer=diffusers.CogVideoXTransformer3DModel(**arguments).eval(),
            scheduler=schedulers["2b" if model == "2b" else "5b"](),
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe, steps=4, seed=0, size=(32, 48), num_frames=9, **kwargs):
    """Latents `[B, T, C, H, W]` of a short run; the input image or video of the task is noise of the same seed."""
    arguments = {
        "prompt": "dance monkey",
        "negative_prompt": "still",
        "guidance_scale": 6.0,
        "height": size[0],
        "width": size[1],
        "num_inference_steps": steps,
        "max_sequence_length": 16,
        "output_type": "latent",
        "generator": torch.Generator("cpu").manual_seed(seed),
        **_task_arguments(type(pipe).__name__, size, num_frames, seed),
        **kwargs,
    }
    return pipe(**arguments).frames


def _task_arguments(name, size, num_frames, seed):
    from PIL import Image

    noise = torch.Generator().manual_seed(seed)
    shape = (num_frames, *size, 3)
    frames = torch.randint(0, 256, shape, generator=noise, dtype=torch.uint8).numpy()
    images = [Image.fromarray(frame) for frame in frames]
    return {
        "CogVideoXPipeline": {"num_frames": num_frames},
        "CogVideoXImageToVideoPipeline": {"num_frames": num_frames, "image": images[0]},
        "CogVideoXVideoToVideoPipeline": {"video": images},
        "CogVideoXFunControlPipeline": {"control_video": images},
    }[name]
