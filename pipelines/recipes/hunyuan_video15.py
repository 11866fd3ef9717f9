"""Text or image to video with HunyuanVideo-1.5 and sparse attention.

    python pipelines/recipes/hunyuan_video15.py "a cat walks on the grass, realistic" --output cat.mp4 --offload
    python pipelines/recipes/hunyuan_video15.py "the cat looks up" --image cat.png --offload

Needs the weights (downloaded from the Hugging Face Hub on the first call) and a GPU. The script itself is tested
offline with random weights only; with released weights it has not been run yet. `--help` needs no network.

Memory, counted from the configurations in bf16: the transformer takes 17 GB, the text encoder (Qwen2.5-VL 7B) 15 GB.
With `--offload` only one of them is on the GPU at a time; tiling bounds what the VAE needs. Steps and layers that stay
dense are stock, and stock attention makes a mask of all token pairs in every layer: 2.6 GB at 480p, 12.9 GB at 720p.
Sparse calls make none, so `--dense-steps 0` avoids it; they add copies of one layer's queries, keys and values.

The video has the size that the checkpoint was trained for: 480p or 720p, in the image's shape or in 16:9. Guidance is
a part of the pipeline (`pipe.guider`), not an argument of the call.
"""

import argparse
from collections.abc import Sequence


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt")
    parser.add_argument("--negative-prompt", default="")
    parser.add_argument("--image", help="first frame: a file or an address")
    parser.add_argument(
        "--model",
        help="default: hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_t2v, with an image ...-480p_i2v",
    )
    parser.add_argument("--density", type=float, default=0.2, help="share of attention computed in sparse calls")
    parser.add_argument("--dense-steps", type=float, default=0.2, help="share of leading steps that stay dense")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--frames", type=int, default=121)
    parser.add_argument("--guidance", type=float, help="default: that of the checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--offload", action="store_true", help="keep only the part that is computing on the GPU")
    parser.add_argument("--output", default="hunyuan_video15.mp4")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Generate one video and say what the sparse attention did."""
    options = parse(arguments)
    import diffusers
    import torch
    from diffusers.utils import export_to_video, load_image

    import fastdit

    given = {}
    pipeline, task = diffusers.HunyuanVideo15Pipeline, "t2v"
    if options.image is not None:
        pipeline, task = diffusers.HunyuanVideo15ImageToVideoPipeline, "i2v"
        given["image"] = load_image(options.image)
    model = options.model or f"hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_{task}"
    pipe = pipeline.from_pretrained(model, torch_dtype=torch.bfloat16)
    if options.guidance is not None:
        pipe.guider = pipe.guider.new(guidance_scale=options.guidance)
    if options.offload:
        pipe.enable_model_cpu_offload(device=options.device)
    else:
        pipe.to(options.device)
    pipe.vae.enable_tiling()
    schedule = fastdit.Schedule(dense_steps=options.dense_steps)
    with fastdit.enable(pipe, fastdit.PyramidConfig(density=options.density, schedule=schedule)) as session:
        video = pipe(
            prompt=options.prompt,
            negative_prompt=options.negative_prompt,
            num_frames=options.frames,
            num_inference_steps=options.steps,
            generator=torch.Generator("cpu").manual_seed(options.seed),
            **given,
        ).frames[0]
        print(session.summary())
    export_to_video(video, options.output, fps=24)


if __name__ == "__main__":
    main()
