"""Text to video with Mochi 1 and sparse attention.

    python pipelines/recipes/mochi.py "a red panda eating bamboo" --output panda.mp4 --offload

Needs the weights (downloaded from the Hugging Face Hub on the first call) and a GPU. The script itself is tested
offline with random weights only; with released weights it has not been run yet. `--help` needs no network.

Memory, counted from the configurations in bf16: the transformer takes 20 GB, the text encoder (T5 v1.1 XXL) 9.5 GB.
With `--offload` only one of them is on the GPU at a time; tiling bounds what the VAE needs. Sparse attention adds
copies of one layer's queries, keys and values in tile order.
"""

import argparse
from collections.abc import Sequence


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt")
    parser.add_argument("--model", default="genmo/mochi-1-preview")
    parser.add_argument("--density", type=float, default=0.2, help="share of attention computed in sparse calls")
    parser.add_argument("--dense-steps", type=float, default=0.2, help="share of leading steps that stay dense")
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--frames", type=int, default=163)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=848)
    parser.add_argument("--guidance", type=float, default=4.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--offload", action="store_true", help="keep only the part that is computing on the GPU")
    parser.add_argument("--output", default="mochi.mp4")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Generate one video and say what the sparse attention did."""
    options = parse(arguments)
    import torch
    from diffusers import MochiPipeline
    from diffusers.utils import export_to_video

    import fastdit

    pipe = MochiPipeline.from_pretrained(options.model, variant="bf16", torch_dtype=torch.bfloat16)
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
        ).frames[0]
        print(session.summary())
    export_to_video(video, options.output, fps=30)


if __name__ == "__main__":
    main()
