"""Wan text-to-video with released weights, dense or sparse.

    python pipelines/recipes/wan.py --prompt "a lighthouse in a storm" --offload

Needs a CUDA GPU and the network (weights come from the Hugging Face Hub); fastdit's tests only check `--help`.

Memory in bfloat16, by parameter counts, not measured: the text encoder takes 11 GB and is used once; the transformer of
1.3B takes 3 GB, TI2V-5B 10 GB, 14B 28 GB, each of the two of A14B 28 GB. `--offload` keeps only the part that computes
on the GPU, and then the largest part sets the need. Query, key and value of 720x1280, 81 frames (75,600 tokens, 40
heads of 128) take 0.8 GB each.
"""

import argparse

MODELS = {
    "1.3b": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    "14b": "Wan-AI/Wan2.1-T2V-14B-Diffusers",
    "a14b": "Wan-AI/Wan2.2-T2V-A14B-Diffusers",
    "ti2v-5b": "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
}
NEGATIVE = "overexposed, static, blurred details, subtitles, worst quality, deformed, still picture"


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description="Wan text-to-video with sparse attention")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--model", choices=MODELS, default="1.3b")
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=832)
    parser.add_argument("--frames", type=int, default=81, help="4 n + 1")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--density", type=float, default=0.3, help="share of attention in sparse calls; 0 runs dense")
    parser.add_argument("--offload", action="store_true", help="keep idle parts in CPU memory")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="wan.mp4")
    return parser.parse_args()


def main() -> None:
    """Load, enable, generate, report."""
    options = parse_arguments()
    import torch
    from diffusers import AutoencoderKLWan, WanPipeline
    from diffusers.utils import export_to_video

    import fastdit

    name = MODELS[options.model]
    # As in the examples of Diffusers: the small autoencoder in full precision.
    vae = AutoencoderKLWan.from_pretrained(name, subfolder="vae", torch_dtype=torch.float32)
    pipe = WanPipeline.from_pretrained(name, vae=vae, torch_dtype=torch.bfloat16)
    if options.offload:
        pipe.enable_model_cpu_offload()
    else:
        pipe.to("cuda")
    session = None
    if options.density > 0:
        session = fastdit.enable(pipe, fastdit.AdaptiveConfig(density=options.density))
    frames = pipe(
        options.prompt,
        negative_prompt=NEGATIVE,
        height=options.height,
        width=options.width,
        num_frames=options.frames,
        num_inference_steps=options.steps,
        generator=torch.Generator("cpu").manual_seed(options.seed),
    ).frames[0]
    export_to_video(frames, options.output, fps=24 if options.model == "ti2v-5b" else 16)
    if session is not None:
        print(session.summary())


if __name__ == "__main__":
    main()
