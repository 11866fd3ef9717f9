"""Random LTX-Video pipelines, without downloads."""

import torch
from PIL import Image


def build(kind="t2v", num_layers=2, seed=0, **settings):
    """A random pipeline, `kind` one of "t2v", "i2v" and "condition"; `settings` go to the transformer."""
    import diffusers

    from fastdit_pipelines.tiny.components import TEXT_DIM, build_text_encoder, build_tokenizer

    pipelines = {"t2v": "LTXPipeline", "i2v": "LTXImageToVideoPipeline", "condition": "LTXConditionPipeline"}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = build_tokenizer()
        common = {
            "in_channels": 8,
            "out_channels": 8,
            "num_attention_heads": 4,
            "attention_head_dim": 8,
            "cross_attention_dim": 32,
            "num_layers": num_layers,
            "caption_channels": TEXT_DIM,
        }
        transformer = diffusers.LTXVideoTransformer3DModel(**{**common, **settings}).eval()
        pipe = getattr(diffusers, pipelines[kind])(
            tokenizer=tokenizer,
            text_encoder=build_text_encoder(len(tokenizer)),
            vae=_vae(),
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
            transformer=transformer,
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _vae():
    from diffusers import AutoencoderKLLTXVideo

    vae = AutoencoderKLLTXVideo(
        in_channels=3,
        out_channels=3,
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False, False, False, False, False),
        upsample_residual=(False, False, False, False),
        upsample_factor=(1, 1, 1, 1),
        timestep_conditioning=False,
        patch_size=1,
        patch_size_t=1,
        encoder_causal=True,
        decoder_causal=False,
    ).eval()
    vae.use_framewise_encoding = vae.use_framewise_decoding = False
    return vae


def run(pipe, steps=4, seed=0, size=(32, 32), num_frames=9, **kwargs):
    """Latents of a short run: the grid is 3 x 8 x 8 by default."""
    arguments = {
        "prompt": "dance monkey",
        "negative_prompt": "negative",
        "guidance_scale": 3.0,
        "height": size[0],
        "width": size[1],
        "num_frames": num_frames,
        "num_inference_steps": steps,
        "max_sequence_length": 16,
        "output_type": "latent",
        "generator": torch.Generator("cpu").manual_seed(seed),
    }
    if type(pipe).__name__ == "LTXImageToVideoPipeline":
        noise = torch.randint(0, 256, (*size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        arguments["image"] = Image.fromarray(noise.numpy())
    return pipe(**{**arguments, **kwargs}).frames
