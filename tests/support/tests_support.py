"""Builders shared by the tests: tiny random pipelines, without downloads."""

import torch


def build_tiny_wan(num_layers=2, heads=2, head_dim=12, two_transformers=False, seed=0):
    """A random Wan pipeline, built without downloads."""
    from diffusers import (
        AutoencoderKLWan,
        FlowMatchEulerDiscreteScheduler,
        UniPCMultistepScheduler,
        WanPipeline,
        WanTransformer3DModel,
    )

    from fastdit_pipelines.tiny.components import TEXT_DIM, build_text_encoder, build_tokenizer

    def transformer(offset):
        torch.manual_seed(seed + offset)
        return WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=heads,
            attention_head_dim=head_dim,
            in_channels=16,
            out_channels=16,
            text_dim=TEXT_DIM,
            freq_dim=256,
            ffn_dim=32,
            num_layers=num_layers,
            cross_attn_norm=True,
            qk_norm="rms_norm_across_heads",
            rope_max_seq_len=64,
        ).eval()

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae = AutoencoderKLWan(
            base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
        ).eval()
        tokenizer = build_tokenizer()
        scheduler = (
            UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
            if two_transformers
            else FlowMatchEulerDiscreteScheduler(shift=7.0)
        )
        pipe = WanPipeline(
            tokenizer=tokenizer,
            text_encoder=build_text_encoder(len(tokenizer)),
            vae=vae,
            scheduler=scheduler,
            transformer=transformer(0),
            transformer_2=transformer(1) if two_transformers else None,
            boundary_ratio=0.875 if two_transformers else None,
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run_wan(pipe, steps=4, size=(32, 48), num_frames=9, seed=0, **kwargs):
    """Latents of a short run."""
    arguments = {
        "prompt": "dance monkey",
        "negative_prompt": "negative",
        "guidance_scale": 6.0,
        "height": size[0],
        "width": size[1],
        "num_frames": num_frames,
        "num_inference_steps": steps,
        "max_sequence_length": 16,
        "output_type": "latent",
        "generator": torch.Generator("cpu").manual_seed(seed),
        **kwargs,
    }
    return pipe(**arguments).frames
