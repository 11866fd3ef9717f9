"""Text to video with CogVideoX and sparse attention.

    python pipelines/recipes/cogvideox.py "a red panda eating bamboo" --output panda.mp4

Needs the weights (downloaded from the Hugging Face Hub on the first call) and a GPU. The script itself is tested
offline with random weights only; with released weights it has not been run yet. `--help` needs no network.

Memory, counted from the configurations in 16 bit: the text encoder (T5 v1.1 XXL) takes 9.5 GB, the transformer 3.4 GB
(2b) or 11 GB (5b, 1.5). With `--offload` only one of them is on the GPU at a time; tiling bounds what the VAE needs.
Sparse attention adds copies of one layer's queries, keys and values in tile order.
"""

import argparse
from collections.abc import Sequence


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt")
    parser.add_argument("--model", default="THUDM/CogVideoX-5b", help="also THUDM/CogVideoX-2b, THUDM/CogVideoX1.5-5B")
    parser.add_argument("--density", type=float, default=0.2, help="share of attention computed in sparse calls")
    parser.add_argument("--dense-steps", type=float, default=0.2, help="share of leading steps that stay dense")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--frames", type=int, help="default: that of the model")
    parser.add_argument("--height", type=int, help="default: that of the model")
    parser.add_argument("--width", type=int, help="default: that of the model")
    parser.add_argument("--guidance", type=float, default=6.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fps", type=int, default=8, help="8 for 2b and 5b, 16 for 1.5")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--offload", action="store_true", help="keep only the part that is computing on the GPU")
    parser.add_argument("--output", default="cogvideox.mp4")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Generate one video and say what the sparse attention did."""
    options = parse(arguments)
    import torch
    from diffusers import CogVideoXPipeline
    from diffusers.utils import export_to_video

    import fastdit

    # The 2b model was trained in fp16, the others in bf16.
    dtype = torch.float16 if "2b" in options.model.lower() else torch.bfloat16
    pipe = CogVideoXPipeline.from_pretrained(options.model, torch_dtype=dtype)
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
    export_to_video(video, options.output, fps=options.fps)


if __name__ == "__main__":
    main()
