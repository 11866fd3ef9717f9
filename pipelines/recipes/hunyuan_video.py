"""Text or image to video with HunyuanVideo and sparse attention.

    python pipelines/recipes/hunyuan_video.py "a cat walks on the grass, realistic" --output cat.mp4 --offload
    python pipelines/recipes/hunyuan_video.py "the man turns his head" --image man.png --guidance 1.0 --offload

Needs the weights (downloaded from the Hugging Face Hub on the first call) and a GPU. The script itself is tested
offline with random weights only; with released weights it has not been run yet. `--help` needs no network.

Memory, counted from the configurations in 16 bit: the transformer takes 26 GB, the text encoder (Llama 8B, for images
with a vision tower) 16 GB. With `--offload` only one of them is on the GPU at a time; tiling bounds what the VAE needs.
Sparse attention adds copies of one layer's queries, keys and values in tile order.
"""

import argparse
from collections.abc import Sequence


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt")
    parser.add_argument("--image", help="first frame: a file or an address")
    parser.add_argument(
        "--model",
        help="default: hunyuanvideo-community/HunyuanVideo, or HunyuanVideo-I2V (token_replace) with an image; "
        "also hunyuanvideo-community/HunyuanVideo-I2V-33ch (latent_concat)",
    )
    parser.add_argument("--density", type=float, default=0.2, help="share of attention computed in sparse calls")
    parser.add_argument("--dense-steps", type=float, default=0.2, help="share of leading steps that stay dense")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--frames", type=int, default=129)
    parser.add_argument("--height", type=int, default=720)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--guidance", type=float, default=6.0, help="embedded; 1.0 for HunyuanVideo-I2V-33ch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--offload", action="store_true", help="keep only the part that is computing on the GPU")
    parser.add_argument("--output", default="hunyuan_video.mp4")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Generate one video and say what the sparse attention did."""
    options = parse(arguments)
    import diffusers
    import torch
    from diffusers.utils import export_to_video, load_image

    import fastdit

    given = {}
    pipeline, model = diffusers.HunyuanVideoPipeline, "hunyuanvideo-community/HunyuanVideo"
    if options.image is not None:
        pipeline, model = diffusers.HunyuanVideoImageToVideoPipeline, "hunyuanvideo-community/HunyuanVideo-I2V"
        given["image"] = load_image(options.image)
    model = options.model or model
    # As published: the transformer in bf16, everything else in fp16.
    transformer = diffusers.HunyuanVideoTransformer3DModel.from_pretrained(
        model, subfolder="transformer", torch_dtype=torch.bfloat16
    )
    pipe = pipeline.from_pretrained(model, transformer=transformer, torch_dtype=torch.float16)
    if options.offload:
        pipe.enable_model_cpu_offload(device=options.device)
    else:
        pipe.to(options.device)
    pipe.vae.enable_tiling()
    config = fastdit.PyramidConfig(density=options.density, schedule=fastdit.Schedule(dense_steps=options.dense_steps))
    with fastdit.enable(pipe, config) as session:
        video = pipe(
            prompt=options.prompt,
            num_frames=options.frames,
            height=options.height,
            width=options.width,
            num_inference_steps=options.steps,
            guidance_scale=options.guidance,
            generator=torch.Generator("cpu").manual_seed(options.seed),
            **given,
        ).frames[0]
        print(session.summary())
    export_to_video(video, options.output, fps=24)


if __name__ == "__main__":
    main()
