"""LTX-Video with released weights, dense or sparse; from a text, or from a text and a first frame.

    python pipelines/recipes/ltx.py --prompt "a lighthouse in a storm"

Needs a CUDA GPU and the network (weights come from the Hugging Face Hub); fastdit's tests only check `--help`.

Memory in bfloat16, by parameter counts, not measured: the text encoder takes 10 GB and is used once, the transformer
of 2B 4 GB. `--offload` keeps only the part that computes on the GPU. The sequences are short (480x704, 161 frames:
6,930 tokens), so attention is a smaller part of the time than in other models: compare with `--density 0` before you
keep it.
"""

import argparse

MODEL = "Lightricks/LTX-Video"
NEGATIVE = "worst quality, inconsistent motion, blurry, jittery, distorted"


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description="LTX-Video with sparse attention")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--image", help="file or address of the first frame")
    parser.add_argument("--height", type=int, default=480, help="divisible by 32")
    parser.add_argument("--width", type=int, default=704, help="divisible by 32")
    parser.add_argument("--frames", type=int, default=161, help="8 n + 1")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--density", type=float, default=0.3, help="share of attention in sparse calls; 0 runs dense")
    parser.add_argument("--offload", action="store_true", help="keep idle parts in CPU memory")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="ltx.mp4")
    return parser.parse_args()


def main() -> None:
    """Load, enable, generate, report."""
    options = parse_arguments()
    import torch
    from diffusers import LTXImageToVideoPipeline, LTXPipeline
    from diffusers.utils import export_to_video, load_image

    import fastdit

    kind = LTXImageToVideoPipeline if options.image else LTXPipeline
    pipe = kind.from_pretrained(MODEL, torch_dtype=torch.bfloat16)
    if options.offload:
        pipe.enable_model_cpu_offload()
    else:
        pipe.to("cuda")
    session = None
    if options.density > 0:
        session = fastdit.enable(pipe, fastdit.AdaptiveConfig(density=options.density))
    condition = {"image": load_image(options.image)} if options.image else {}
    frames = pipe(
        **condition,
        prompt=options.prompt,
        negative_prompt=NEGATIVE,
        height=options.height,
        width=options.width,
        num_frames=options.frames,
        num_inference_steps=options.steps,
        generator=torch.Generator("cpu").manual_seed(options.seed),
    ).frames[0]
    export_to_video(frames, options.output, fps=24)
    if session is not None:
        print(session.summary())


if __name__ == "__main__":
    main()
