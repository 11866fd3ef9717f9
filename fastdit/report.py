"""What a session did, for people: the text behind `session.summary()`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastdit.session import Session

REASONS = {
    "dense_steps": "leading dense steps (schedule.dense_steps)",
    "dense_layers": "dense layers (schedule.dense_layers)",
    "dense_heads": "layers whose heads are all dense (config.heads)",
    "min_tokens": "sequence shorter than min_tokens",
}
# Of the heads that a guard has made dense.
SHOWN_HEADS = 8


def summarize(session: Session) -> str:
    """Method, density over the whole run, and why calls were dense."""
    stats, config = session.stats, session.config
    lines = [f"fastdit: {config.method} on {len(session.slots)} layers of {', '.join(session.transformer_names)}"]
    total = stats.density()
    if total is None:
        return "\n".join([*lines, "  no run yet"])
    sparse = stats.density(sparse_only=True)
    dense_calls = stats.dense_reasons()
    num_sparse = len(stats.records) - sum(dense_calls.values())
    lines.append(f"  density over the whole run, dense calls included: {total:.3f}")
    if sparse is None:
        lines.append("  sparse calls: none, the whole run was dense")
    else:
        lines.append(f"  sparse calls: {num_sparse}, density {sparse:.3f}")
    if stats.dropped:
        lines.append(f"  earlier calls, counted in the densities above alone: {stats.dropped}")
    lines += [f"  dense calls: {count}, {REASONS.get(reason, reason)}" for reason, count in sorted(dense_calls.items())]
    return "\n".join(lines + _reuse_lines(session) + _guard_lines(session) + _layer_table(session))


def _guard_lines(session: Session) -> list[str]:
    """Heads that the guard has made dense."""
    guard = session.guard
    if guard is None:
        return []
    fallen = guard.fallen
    lines = [f"  guard: {guard.checks} calls looked at, heads made dense for their recall: {len(fallen)}"]
    names = [f"{one.transformer}.{one.layer}.{one.head} from step {one.step}" for one in fallen[:SHOWN_HEADS]]
    if names:
        more = f" and {len(fallen) - SHOWN_HEADS} more" if len(fallen) > SHOWN_HEADS else ""
        lines.append(f"    transformer.layer.head: {', '.join(names)}{more}")
    return lines


def _reuse_lines(session: Session) -> list[str]:
    """Masks built and reused, and how well the reused ones held, for the cached method."""
    reuse = session.stats.mask_reuse()
    if reuse is None:
        return []
    lines = [
        f"  masks: {reuse['built']} built, {reuse['reused']} reused; "
        f"heads built anew for their recall: {reuse['refreshed_heads']}"
    ]
    if reuse["not_kept"]:
        lines.append(f"  masks without room in the cache, built in every step: {reuse['not_kept']}")
    if "recall" in reuse:
        lines.append(
            f"  recall of reused masks on sampled rows: {reuse['recall']:.3f}, least of a head "
            f"{reuse['least_recall']:.3f}; lost since they were built: {reuse['drift']:.3f}"
        )
    return lines


def _layer_table(session: Session) -> list[str]:
    """Density of each layer (rows) over four equal parts of the run (columns), one table per transformer."""
    lines = []
    for number, name in enumerate(session.transformer_names):
        cells = session.stats.layer_step_density(number)
        if not cells:
            continue
        first, last = min(step for _, step in cells), max(step for _, step in cells)
        width = max(1, -(-(last - first + 1) // 4))
        parts = [range(start, min(start + width, last + 1)) for start in range(first, last + 1, width)]
        titles = [f"{part[0]}-{part[-1]}" for part in parts]
        lines.append(f"  {name}: density by layer and steps")
        lines.append("    layer " + " ".join(f"{title:>7}" for title in titles))
        for layer in sorted({layer for layer, _ in cells}):
            means = []
            for part in parts:
                values = [cells[layer, step] for step in part if (layer, step) in cells]
                means.append(f"{sum(values) / len(values):7.3f}" if values else "      -")
            lines.append(f"    {layer:>5} " + " ".join(means))
    return lines
