"""Wan image-to-video with released weights, dense or sparse. The keys of the image, frame 0, are kept in every call.

    python pipelines/recipes/wan_i2v.py --image cat.png --prompt "the cat turns its head" --offload

Needs a CUDA GPU and the network (weights come from the Hugging Face Hub); fastdit's tests only check `--help`.

Memory in bfloat16, by parameter counts, not measured: the text encoder takes 11 GB and is used once, the image encoder
of 2.1 1.3 GB; the transformer of TI2V-5B takes 10 GB, of 2.1 33 GB (14B and the image attention), each of the two of
A14B 28 GB. `--offload` keeps only the part that computes on the GPU, and then the largest part sets the need.
"""

import argparse

MODELS = {
    "480p": "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers",
    "720p": "Wan-AI/Wan2.1-I2V-14B-720P-Diffusers",
    "a14b": "Wan-AI/Wan2.2-I2V-A14B-Diffusers",
    "ti2v-5b": "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
}


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description="Wan image-to-video with sparse attention")
    parser.add_argument("--image", required=True, help="file or address of the first frame")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--model", choices=MODELS, default="480p")
    parser.add_argument("--area", type=int, default=480 * 832, help="pixels; the shape follows the image")
    parser.add_argument("--frames", type=int, default=81, help="4 n + 1")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--density", type=float, default=0.3, help="share of attention in sparse calls; 0 runs dense")
    parser.add_argument("--offload", action="store_true", help="keep idle parts in CPU memory")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="wan_i2v.mp4")
    return parser.parse_args()


def main() -> None:
    """Load, enable, generate, report."""
    options = parse_arguments()
    import torch
    from diffusers import AutoencoderKLWan, WanImageToVideoPipeline
    from diffusers.utils import export_to_video, load_image

    import fastdit

    name = MODELS[options.model]
    # As in the examples of Diffusers: the small autoencoder in full precision.
    vae = AutoencoderKLWan.from_pretrained(name, subfolder="vae", torch_dtype=torch.float32)
    pipe = WanImageToVideoPipeline.from_pretrained(name, vae=vae, torch_dtype=torch.bfloat16)
    if options.offload:
        pipe.enable_model_cpu_offload()
    else:
        pipe.to("cuda")
    image = load_image(options.image)
    step = pipe.vae_scale_factor_spatial * 2  # a token is 2 x 2 latents
    scale = (options.area / (image.width * image.height)) ** 0.5
    width, height = (round(side * scale / step) * step for side in (image.width, image.height))
    session = None
    if options.density > 0:
        session = fastdit.enable(pipe, fastdit.AdaptiveConfig(density=options.density))
    frames = pipe(
        image.resize((width, height)),
        options.prompt,
        height=height,
        width=width,
        num_frames=options.frames,
        num_inference_steps=options.steps,
        generator=torch.Generator("cpu").manual_seed(options.seed),
    ).frames[0]
    export_to_video(frames, options.output, fps=24 if options.model == "ti2v-5b" else 16)
    if session is not None:
        print(session.summary())


if __name__ == "__main__":
    main()
