"""The pictures of `docs/how-it-works.md` and `docs/search.md`, made by fastdit itself.

    python docs/pictures/draw.py tiles masks cut    # synthetic heads, seconds
    python docs/pictures/draw.py density            # one run of the bundled model
    python docs/pictures/draw.py promises           # of the committed result of fastdit bench search

Seeds are fixed, so every run draws the same.
"""

import argparse
import json
from pathlib import Path

import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

import fastdit
from fastdit.orders import video_order
from fastdit_eval.attention_heads import make_heads
from fastdit_kernels import BlockMask

HERE = Path(__file__).parent
RESULTS = HERE.parents[1] / "eval" / "results"
SEARCH_RESULT = RESULTS / "search_tiny.json"
GRID = fastdit.VideoGrid(frames=8, height=16, width=16)
FAMILY = "mixed"
TILES = {"q_tile": 64, "kv_tile": 32}
DENSITY = 0.15
# A level's colour, fine to coarse; the last stands for what is dropped.
LEVEL_COLORS = ["#0b3c49", "#16697a", "#3a9a8f", "#7dbf77", "#c7d85c", "#f2e394"]
DROPPED = "#ffffff"
PROMPT = "a red circle moving left on a dark background"


def token_levels(mask: BlockMask) -> torch.Tensor:
    """Level at which each key token (in tile order) is seen by each query tile of head 0, -1 if dropped; `[NQ, S]`."""
    keep, layout = mask.to_dense()[0, 0], mask.kv_layout
    levels = torch.full((keep.shape[0], layout.length), -1)
    for level in range(layout.num_levels):
        first = layout.level_offset(level)
        part = keep[:, first : first + layout.level_tiles(level)]
        tokens = part.repeat_interleave(layout.tile << level, dim=1)[:, : layout.length]
        levels[tokens] = level
    return levels


def example_head() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query, key and value `[1, 1, S, D]` of a synthetic head that is partly local and partly drawn to segments."""
    heads = make_heads(FAMILY, GRID, seeds=(0,))
    return heads.query, heads.key, heads.value


def attend(config: fastdit.AttentionConfig) -> tuple[BlockMask, float, float]:
    """Mask, density and mean relative error of a method on the example head."""
    query, key, value = example_head()
    out, stats = fastdit.sparse_attention(query, key, value, config, grid=(GRID.frames, GRID.height, GRID.width))
    exact = torch.nn.functional.scaled_dot_product_attention(query.double(), key.double(), value.double())
    error = ((out - exact).norm(dim=-1) / exact.norm(dim=-1)).mean().item()
    return stats.mask, stats.density, error


def true_mass(rows: torch.Tensor) -> torch.Tensor:
    """Softmax mass on every key token, mean over the queries `rows`; raster order."""
    query, key, _ = example_head()
    scores = query[0, 0, rows] @ key[0, 0].T / query.shape[-1] ** 0.5
    return scores.softmax(-1).mean(0)


def level_map() -> ListedColormap:
    """Colours of -1 (dropped), 0, 1, ..."""
    return ListedColormap([DROPPED, *LEVEL_COLORS])


def level_legend() -> list[Patch]:
    """What the colours mean."""
    names = ["dropped", "fine", *(f"mean of {1 << level} tokens" for level in range(1, len(LEVEL_COLORS)))]
    colors = [DROPPED, *LEVEL_COLORS]
    return [Patch(facecolor=color, edgecolor="gray", label=name) for color, name in zip(colors, names, strict=True)]


def draw_tiles() -> Figure:
    """Which tokens share a tile of 64 tokens: raster order cuts stripes, Gilbert order cuts compact boxes."""
    figure = Figure(figsize=(9.5, 3.5), layout="constrained")
    axes = figure.subplots(2, 6)
    for row, name in enumerate(("raster", "gilbert")):
        tiles = torch.empty(GRID.video_length, dtype=torch.long)
        tiles[video_order(GRID, name)] = torch.arange(GRID.video_length) // 64
        # Neighbouring tiles get colours that differ.
        video = (tiles * 7 % 20).view(GRID.frames, GRID.height, GRID.width)
        for frame, axis in enumerate(axes[row]):
            axis.imshow(video[frame].numpy(), cmap="tab20", vmin=0, vmax=19)
            axis.set(xticks=[], yticks=[])
            if row == 0:
                axis.set_title(f"frame {frame}", fontsize=9)
        axes[row][0].set_ylabel(f"{name} order")
    return figure


def draw_masks() -> Figure:
    """One head, three methods: query tiles down, key tokens across, colours are levels."""
    # Keys and queries stay in Gilbert order in all three, so that the pictures can be laid side by side.
    configs = {
        "static, a window": fastdit.StaticConfig(pattern="window:3,3,3", **TILES),
        "adaptive": fastdit.AdaptiveConfig(density=DENSITY, **TILES),
        "pyramid": fastdit.PyramidConfig(density=DENSITY, num_levels=len(LEVEL_COLORS), order="gilbert", **TILES),
    }
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    axes = figure.subplots(1, len(configs))
    for axis, (name, config) in zip(axes, configs.items(), strict=True):
        mask, density, error = attend(config)
        axis.imshow(
            (token_levels(mask) + 1).numpy(),
            cmap=level_map(),
            vmin=0,
            vmax=len(LEVEL_COLORS),
            aspect="auto",
            interpolation="nearest",
        )
        axis.set_title(f"{name}\ndensity {density:.2f}, error {error:.2f}", fontsize=10)
        axis.set_xlabel("key token, Gilbert order")
    axes[0].set_ylabel("query tile")
    figure.legend(handles=level_legend(), loc="outside lower center", ncols=len(LEVEL_COLORS) + 1, fontsize=8)
    return figure


def draw_cut() -> Figure:
    """What one query tile sees of the video: the true attention above, the levels of the pyramid's cut below."""
    mask, density, _ = attend(
        fastdit.PyramidConfig(density=DENSITY, num_levels=len(LEVEL_COLORS), order="gilbert", **TILES)
    )
    order = video_order(GRID, "gilbert")
    tile = mask.q_layout.num_tiles // 2
    members = order[tile * mask.q_tile : (tile + 1) * mask.q_tile]
    levels = torch.empty(GRID.video_length, dtype=torch.long)
    levels[order] = token_levels(mask)[tile]
    own = torch.zeros(GRID.video_length)
    own[members] = 1
    shape = (GRID.frames, GRID.height, GRID.width)
    mass = true_mass(members).view(shape)
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    axes = figure.subplots(2, GRID.frames)
    for frame in range(GRID.frames):
        above, below = axes[0][frame], axes[1][frame]
        above.imshow(mass[frame].clamp(min=1e-6).log10().numpy(), cmap="magma", vmin=-5, vmax=float(mass.max().log10()))
        below.imshow((levels.view(shape)[frame] + 1).numpy(), cmap=level_map(), vmin=0, vmax=len(LEVEL_COLORS))
        for axis in (above, below):
            if own.view(shape)[frame].any():
                axis.contour(own.view(shape)[frame].numpy(), levels=[0.5], colors="red", linewidths=1.2)
            axis.set(xticks=[], yticks=[])
        above.set_title(f"frame {frame}", fontsize=9)
    axes[0][0].set_ylabel("true attention")
    axes[1][0].set_ylabel(f"cut, density {density:.2f}")
    figure.legend(handles=level_legend(), loc="outside lower center", ncols=len(LEVEL_COLORS) + 1, fontsize=8)
    return figure


def draw_density() -> Figure:
    """Density of every layer and step in a run of the bundled model; dense steps and the dense layer are 1."""
    from fastdit_pipelines.loading import load_pipeline

    pipe = load_pipeline("tiny")
    pipe.set_progress_bar_config(disable=True)
    config = fastdit.AdaptiveConfig(top_p=0.9, min_density=0.05, max_density=0.5)
    with fastdit.enable(pipe, config) as session, torch.no_grad():
        # 2,160 tokens: few, so that it is quick, but past `min_tokens`.
        seed = torch.Generator().manual_seed(0)
        pipe(PROMPT, height=96, width=96, num_frames=29, num_inference_steps=8, generator=seed, output_type="latent")
    cells = session.stats.layer_step_density()
    table = torch.zeros(1 + max(layer for layer, _ in cells), 1 + max(step for _, step in cells))
    for place, value in cells.items():
        table[place] = value
    figure = Figure(figsize=(7.5, 3.2), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(table.numpy(), vmin=0, vmax=1, cmap="viridis", aspect="auto")
    for layer, row in enumerate(table.tolist()):
        for step, value in enumerate(row):
            color = "black" if value > 0.6 else "white"
            axis.text(step, layer, f"{value:.2f}"[1 - int(value) :], ha="center", va="center", color=color, fontsize=7)
    axis.set(xlabel="step", ylabel="layer", xticks=range(table.shape[1]), yticks=range(table.shape[0]))
    axis.set_title(f"adaptive, top_p .9, cap .5: density {session.stats.density():.2f} over the run", fontsize=10)
    figure.colorbar(image, label="density")
    return figure


def draw_promises() -> Figure:
    """Held-out PSNR against density over the run: the plan of every promise and the best uniform setting beside it."""
    rows = json.loads(SEARCH_RESULT.read_text())["promises"]
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axis = figure.subplots()
    mean = [row["held_out"]["psnr"] for row in rows]
    plan = [row["held_out"]["density"] for row in rows]
    for row in rows:
        psnr = row["held_out"]["psnr_of_prompts"]
        axis.scatter([row["held_out"]["density"]] * len(psnr), psnr, s=6, color="#16697a", alpha=0.35)
        axis.axhline(row["promise"], color="gray", linestyle=":", linewidth=1)
        axis.text(0.0, row["promise"], f" promise {row['promise']:g} dB", fontsize=8, va="bottom")
    axis.plot(
        plan,
        mean,
        "o-",
        color="#16697a",
        label=f"plan, mean of {rows[0]['held_out']['prompts']} held-out prompts (small: each prompt)",
    )
    found = [row for row in rows if row.get("uniform")]
    other = [row["uniform"]["density"] for row in found]
    at = [row["held_out"]["psnr"] for row in found]
    if found:
        axis.plot(other, at, "s--", color="#c1440e", label="best uniform setting of the same mean PSNR")
    for row, x, y in zip(found, other, at, strict=True):
        axis.annotate("", (row["held_out"]["density"], y), (x, y), arrowprops={"arrowstyle": "->", "color": "gray"})
        axis.text(x, y, f"  {row['saving']:.0%} saved", va="top", fontsize=9)
    axis.set(xlim=(0, 0.6), xlabel="density over the whole run, dense steps included", ylabel="PSNR against dense, dB")
    axis.legend(loc="lower right", fontsize=8)
    return figure


PICTURES = {
    "tiles": draw_tiles,
    "masks": draw_masks,
    "cut": draw_cut,
    "density": draw_density,
    "promises": draw_promises,
}


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="+", choices=PICTURES)
    parser.add_argument("--output", type=Path, default=HERE, help="folder for the PNGs; default beside this file")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> None:
    """Draw what was asked for."""
    options = parse_arguments(words)
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.pictures:
        PICTURES[name]().savefig(options.output / f"{name}.png", dpi=110)


if __name__ == "__main__":
    main()
