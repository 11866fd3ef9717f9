"""Random HunyuanVideo pipelines, text-to-video and both kinds of image-to-video, built without downloads."""

import torch
from character_tokenizer import build_tokenizer

LATENT_CHANNELS = 4
TEXT_DIM, POOLED_DIM, TEXT_LENGTH = 16, 8, 24
# Channels of the latents that the transformer takes, by kind of image condition.
IN_CHANNELS = {
    None: LATENT_CHANNELS,
    "latent_concat": 2 * LATENT_CHANNELS + 1,
    "token_replace": LATENT_CHANNELS,
}


def build(image_condition_type=None, num_layers=2, num_single_layers=2, seed=0, **transformer):
    """A random pipeline; `image_condition_type` is `None` for text-to-video, "latent_concat" or "token_replace".

    Image-to-video has no text encoder: `run` gives it embeddings. Other arguments go to the transformer.
    """
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaModel

    sizes = {
        "in_channels": IN_CHANNELS[image_condition_type],
        "out_channels": LATENT_CHANNELS,
        "num_attention_heads": 2,
        "attention_head_dim": 10,
        "num_layers": num_layers,
        "num_single_layers": num_single_layers,
        "num_refiner_layers": 1,
        "patch_size": 1,
        "patch_size_t": 1,
        "guidance_embeds": True,
        "text_embed_dim": TEXT_DIM,
        "pooled_projection_dim": POOLED_DIM,
        "rope_axes_dim": (2, 4, 4),
        "image_condition_type": image_condition_type,
        **transformer,
    }
    encoder = {"intermediate_size": 37, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 1000}
    special = {"hidden_act": "gelu", "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = {
            "transformer": diffusers.HunyuanVideoTransformer3DModel(**sizes).eval(),
            "vae": diffusers.AutoencoderKLHunyuanVideo(
                in_channels=3,
                out_channels=3,
                latent_channels=LATENT_CHANNELS,
                down_block_types=("HunyuanVideoDownBlock3D",) * 4,
                up_block_types=("HunyuanVideoUpBlock3D",) * 4,
                block_out_channels=(8, 8, 8, 8),
                layers_per_block=1,
                act_fn="silu",
                norm_num_groups=4,
                scaling_factor=0.476986,
                spatial_compression_ratio=8,
                temporal_compression_ratio=4,
                mid_block_add_attention=True,
            ).eval(),
            "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        }
        names = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
        if image_condition_type is None:
            llama = LlamaModel(LlamaConfig(hidden_size=TEXT_DIM, **encoder, **special)).eval()
            clip = CLIPTextModel(
                CLIPTextConfig(
                    hidden_size=POOLED_DIM, projection_dim=32, max_position_embeddings=77, **encoder, **special
                )
            ).eval()
            tokenizers = build_tokenizer(1024, begin=True), build_tokenizer(77, begin=True, end=True)
            parts |= dict(zip(names, (llama, tokenizers[0], clip, tokenizers[1]), strict=True))
            pipe = diffusers.HunyuanVideoPipeline(**parts)
        else:
            parts |= dict.fromkeys((*names, "image_processor"))
            pipe = diffusers.HunyuanVideoImageToVideoPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe, steps=4, seed=0, height=32, width=48, num_frames=9, **kwargs):
    """Latents `[B, C, T, H, W]` of a short run; `negative_prompt` with `true_cfg_scale` above 1 is true guidance.

    Image-to-video is made from an image and embeddings that are noise of the same seed.
    """
    arguments = {
        "height": height,
        "width": width,
        "num_frames": num_frames,
        "num_inference_steps": steps,
        "guidance_scale": 4.5,
        "output_type": "latent",
        "generator": torch.Generator("cpu").manual_seed(seed),
    }
    if pipe.text_encoder is None:
        arguments |= image_arguments(seed, height, width)
        if kwargs.pop("negative_prompt", None) is not None:
            negative = text_embeddings(seed + 1, 5)
            arguments |= {f"negative_{name}": value for name, value in negative.items()}
    else:
        arguments |= {
            "prompt": "dance monkey",
            "prompt_template": {"template": "{}", "crop_start": 0},
            "max_sequence_length": TEXT_LENGTH,
        }
    return pipe(**{**arguments, **kwargs}).frames


def text_embeddings(seed, valid):
    """What the text encoders would give for a prompt of `valid` tokens, padded."""
    noise = torch.Generator().manual_seed(seed)
    return {
        "prompt_embeds": torch.randn(1, TEXT_LENGTH, TEXT_DIM, generator=noise),
        "pooled_prompt_embeds": torch.randn(1, POOLED_DIM, generator=noise),
        "prompt_attention_mask": (torch.arange(TEXT_LENGTH) < valid)[None].long(),
    }


def image_arguments(seed, height, width):
    """A condition image of noise, and a prompt."""
    from PIL import Image

    noise = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (height, width, 3), generator=noise, dtype=torch.uint8)
    return {"image": Image.fromarray(pixels.numpy()), **text_embeddings(seed, 13)}
