"""Random Wan pipelines of every kind, without downloads: image, video and text-and-image to video, VACE, Animate."""

import torch
from PIL import Image

KINDS = ("t2v", "t2v_two", "i2v", "i2v_two", "v2v", "ti2v", "ti2v_image", "vace", "animate", "chronoedit", "skyreels")
HEADS, HEAD_DIM = 2, 12
FACE_SIZE = 16


def build(kind="i2v", num_layers=2, seed=0, **settings):
    """A random pipeline of one of `KINDS`; `settings` go to the transformers."""
    with torch.random.fork_rng():
        pipe = _pipeline(kind, num_layers, seed, settings)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _pipeline(kind, num_layers, seed, settings):
    import diffusers

    from fastdit_pipelines.tiny.components import build_text_encoder, build_tokenizer

    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    parts = {
        "tokenizer": tokenizer,
        "text_encoder": build_text_encoder(len(tokenizer)),
        "vae": diffusers.AutoencoderKLWan(
            base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
        ).eval(),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        "transformer": _transformer(kind, num_layers, seed, settings),
    }
    if kind in ("i2v", "animate", "chronoedit"):
        parts |= _image_encoder()
    if kind in ("t2v_two", "i2v_two", "skyreels"):
        parts["scheduler"] = diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        )
    if kind in ("t2v_two", "i2v_two"):
        parts |= {"transformer_2": _transformer(kind, num_layers, seed + 1, settings), "boundary_ratio": 0.875}
    if kind in ("ti2v", "ti2v_image"):
        parts["expand_timesteps"] = True
    pipelines = {
        "i2v": "WanImageToVideoPipeline",
        "i2v_two": "WanImageToVideoPipeline",
        "ti2v_image": "WanImageToVideoPipeline",
        "v2v": "WanVideoToVideoPipeline",
        "vace": "WanVACEPipeline",
        "animate": "WanAnimatePipeline",
        "chronoedit": "ChronoEditPipeline",
        "skyreels": "SkyReelsV2Pipeline",
    }
    return getattr(diffusers, pipelines.get(kind, "WanPipeline"))(**parts)


def _transformer(kind, num_layers, seed, settings):
    import diffusers

    from fastdit_pipelines.tiny.components import TEXT_DIM

    torch.manual_seed(seed)
    with_image = {"image_dim": 4, "added_kv_proj_dim": HEADS * HEAD_DIM}
    names = {
        "vace": ("WanVACETransformer3DModel", {"vace_layers": [0, 1], "vace_in_channels": 96}),
        "animate": (
            "WanAnimateTransformer3DModel",
            {
                "in_channels": 36,
                "latent_channels": 16,
                "motion_encoder_channel_sizes": {"4": 16, "8": 16, "16": 16},
                "motion_encoder_size": FACE_SIZE,
                "motion_style_dim": 8,
                "motion_dim": 4,
                "motion_encoder_dim": 16,
                "face_encoder_hidden_dim": 16,
                "face_encoder_num_heads": 2,
                "inject_face_latents_blocks": 2,
                **with_image,
            },
        ),
        "i2v": ("WanTransformer3DModel", {"in_channels": 36, **with_image}),
        "i2v_two": ("WanTransformer3DModel", {"in_channels": 36}),
        "chronoedit": ("ChronoEditTransformer3DModel", {"in_channels": 36, **with_image}),
        "skyreels": ("SkyReelsV2Transformer3DModel", {}),
    }
    name, extra = names.get(kind, ("WanTransformer3DModel", {}))
    common = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": HEADS,
        "attention_head_dim": HEAD_DIM,
        "in_channels": 16,
        "out_channels": 16,
        "text_dim": TEXT_DIM,
        "freq_dim": 256,
        "ffn_dim": 32,
        "num_layers": num_layers,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "rope_max_seq_len": 64,
    }
    return getattr(diffusers, name)(**{**common, **extra, **settings}).eval()


def _image_encoder():
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=4,
        projection_dim=4,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=8,
        intermediate_size=16,
        patch_size=4,
    )
    return {
        "image_encoder": CLIPVisionModel(config).eval(),
        "image_processor": CLIPImageProcessor(crop_size=8, size=8),
    }


def picture(size, seed=0):
    """A random picture, height and width in pixels."""
    noise = torch.randint(0, 256, (*size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(noise.numpy())


def run(pipe, steps=4, seed=0, size=(32, 48), num_frames=9, **kwargs):
    """Latents of a short run."""
    name = type(pipe).__name__
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
    }
    video = [picture(size, frame) for frame in range(num_frames)]
    if name in ("WanImageToVideoPipeline", "ChronoEditPipeline", "WanAnimatePipeline"):
        arguments["image"] = picture(size)
        if getattr(pipe.transformer.config, "added_kv_proj_dim", None):
            # These models take the last 512 tokens for text and those before them for the image.
            arguments["max_sequence_length"] = 512
    if name == "WanVideoToVideoPipeline":
        arguments |= {"video": video, "strength": 0.5}
        del arguments["num_frames"]
    if name == "WanVACEPipeline":
        arguments["video"] = video
    if name == "WanAnimatePipeline":
        faces = [picture((FACE_SIZE, FACE_SIZE), frame) for frame in range(num_frames)]
        arguments |= {"pose_video": video, "face_video": faces, "segment_frame_length": 9}
        del arguments["num_frames"]
    return pipe(**{**arguments, **kwargs}).frames
