"""Random HunyuanVideo-1.5 pipelines, text-to-video and image-to-video, built without downloads."""

import torch
from character_tokenizer import build_tokenizer

LATENT_CHANNELS = 4
TEXT_DIM, GLYPH_DIM, IMAGE_DIM = 16, 32, 12


def build(task="t2v", guidance_scale=6.0, guidance_stop=1.0, num_layers=2, seed=0, **transformer):
    """A random pipeline; `task` is "t2v" or "i2v", other arguments go to the transformer.

    Guidance ends after the share `guidance_stop` of the steps; a scale of 1.0 turns it off.
    """
    import diffusers
    from transformers import (
        ByT5Tokenizer,
        Qwen2_5_VLTextConfig,
        Qwen2_5_VLTextModel,
        T5Config,
        T5EncoderModel,
    )

    sizes = {
        "in_channels": 2 * LATENT_CHANNELS + 1,
        "out_channels": LATENT_CHANNELS,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": num_layers,
        "num_refiner_layers": 1,
        "mlp_ratio": 2.0,
        "patch_size": 1,
        "patch_size_t": 1,
        "text_embed_dim": TEXT_DIM,
        "text_embed_2_dim": GLYPH_DIM,
        "image_embed_dim": IMAGE_DIM,
        "rope_axes_dim": (2, 2, 4),
        "target_size": 16,
        "task_type": task,
        **transformer,
    }
    qwen = {
        "hidden_size": TEXT_DIM,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": 1000,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
        "rope_parameters": {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1000000.0},
    }
    glyphs = T5Config(
        vocab_size=400,
        d_model=GLYPH_DIM,
        d_kv=8,
        d_ff=37,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        relative_attention_num_buckets=8,
        dropout_rate=0.0,
        is_encoder_decoder=False,
        use_cache=False,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = {
            "text_encoder": Qwen2_5_VLTextModel(Qwen2_5_VLTextConfig(**qwen)).eval(),
            "tokenizer": build_tokenizer(4096, chat=True),
            "text_encoder_2": T5EncoderModel(glyphs).eval(),
            "tokenizer_2": ByT5Tokenizer(),
            "transformer": diffusers.HunyuanVideo15Transformer3DModel(**sizes).eval(),
            "vae": diffusers.AutoencoderKLHunyuanVideo15(
                in_channels=3,
                out_channels=3,
                latent_channels=LATENT_CHANNELS,
                block_out_channels=(16, 16),
                layers_per_block=1,
                spatial_compression_ratio=4,
                temporal_compression_ratio=2,
                downsample_match_channel=False,
                upsample_match_channel=False,
            ).eval(),
            "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
            "guider": diffusers.ClassifierFreeGuidance(guidance_scale=guidance_scale, stop=guidance_stop),
        }
        if task == "t2v":
            pipe = diffusers.HunyuanVideo15Pipeline(**parts)
        else:
            pipe = diffusers.HunyuanVideo15ImageToVideoPipeline(**parts, **_image_encoder())
    # The pipeline hard-wires 1985 text tokens; with one token per character its template is long, too.
    pipe.system_message = ""
    pipe.prompt_template_encode_start_idx = 47
    pipe.tokenizer_max_length, pipe.tokenizer_2_max_length, pipe.vision_num_semantic_tokens = 52, 8, 4
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _image_encoder():
    from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(
        hidden_size=IMAGE_DIM,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    return {
        "image_encoder": SiglipVisionModel(config).eval(),
        "feature_extractor": SiglipImageProcessor(size={"height": 8, "width": 8}),
    }


def run(pipe, steps=4, seed=0, height=16, width=24, num_frames=5, **kwargs):
    """Latents `[B, C, T, H, W]` of a short run.

    Image-to-video takes an image of noise, and from its shape the nearest size with the pixels of a square of 16.
    """
    arguments = {
        "prompt": 'a sign "hi"',
        "negative_prompt": "bad",
        "num_frames": num_frames,
        "num_inference_steps": steps,
        "output_type": "latent",
        "generator": torch.Generator("cpu").manual_seed(seed),
    }
    if "image_encoder" in pipe.components:
        from PIL import Image

        noise = torch.Generator().manual_seed(seed)
        pixels = torch.randint(0, 256, (height, width, 3), generator=noise, dtype=torch.uint8)
        arguments["image"] = Image.fromarray(pixels.numpy())
    else:
        arguments |= {"height": height, "width": width}
    return pipe(**{**arguments, **kwargs}).frames
