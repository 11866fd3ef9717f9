"""A recorded run as a folder: tables of density, recall and age, and the recorded calls; arrays and JSON, no pickle."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastdit.errors import InvalidInputError, OutputError
from fastdit.grid import VideoGrid
from fastdit.recorded_call import RecordedCall, RecordedLaunch
from fastdit.recorder import AttentionRecorder
from fastdit.statistics import RunStatistics
from fastdit.whole_files import write_json
from fastdit_kernels import BlockMask, TileLayout

FORMAT = "fastdit.recorded/1"
INDEX, TABLES = "recorded.json", "tables.npz"
MAX_INDEX_BYTES = 8 << 20
# Parts of a run without a plan.
QUARTERS = (0.25, 0.5, 0.75, 1.0)
FloatArray = NDArray[np.float32]
Site = tuple[int, int, int]


@dataclass(frozen=True, eq=False, kw_only=True)
class RecordedRun:
    """What a run did, site by site.

    Args:
        names: The transformers.
        density: Scores computed / scores of dense attention of each transformer, mean over branches: `[steps, layers,
            heads]`, NaN where it did not run.
        recall: Share of the softmax mass on keys of level 0, on sampled rows, likewise; NaN in dense calls.
        age: Steps since the mask was built, `[steps, layers]`; NaN in dense calls.
        ends: Ends of the phases as shares of the run.
        calls: Where to find queries, keys and masks, by `(transformer, layer, step)`: the file's name, or the call.
        left_out: Calls that found no room.
        folder: Where the files are; `None` for a run that is not saved.
    """

    names: tuple[str, ...]
    density: tuple[FloatArray, ...]
    recall: tuple[FloatArray, ...]
    age: tuple[FloatArray, ...]
    ends: tuple[float, ...]
    calls: dict[Site, str | RecordedCall]
    left_out: int = 0
    folder: Path | None = None

    @classmethod
    def of(cls, recorder: AttentionRecorder, ends: Sequence[float] = QUARTERS) -> RecordedRun:
        """What a recorder has seen; reads the device.

        Args:
            recorder: After its run.
            ends: Ends of the phases as shares of the run.

        Raises:
            InvalidInputError: Nothing was run.
        """
        stats = recorder.session.stats
        if not stats.records:
            raise InvalidInputError("nothing was recorded: run the pipeline inside the recorder")
        density, recall, age = [], [], []
        for number, identity in enumerate(recorder.identities):
            table = head_density(stats, number, identity.num_layers, identity.num_heads)
            recalls, ages = np.full_like(table, np.nan), np.full(table.shape[:2], np.nan, np.float32)
            for (transformer, layer, step), found in recorder.recalls.items():
                if transformer == number:
                    recalls[step, layer], ages[step, layer] = found.recall.cpu().numpy(), found.age
            density.append(table)
            recall.append(recalls)
            age.append(ages)
        return cls(
            names=tuple(name for name, _, _ in recorder.found),
            density=tuple(density),
            recall=tuple(recall),
            age=tuple(age),
            ends=tuple(ends),
            calls=dict(recorder.calls),
            left_out=recorder.left_out,
        )

    @property
    def num_steps(self) -> int:
        """Denoising steps of the run."""
        return int(self.density[0].shape[0])

    def phase_density(self, transformer: int = 0) -> FloatArray:
        """Density of each head in each phase, mean over its steps: `[phases, layers, heads]`, NaN where none ran."""
        table, found, first = self.density[transformer], [], 0
        for end in self.ends:
            last = int(np.ceil(end * self.num_steps - 1e-9))
            part = table[first:last]
            ran = ~np.isnan(part)
            sums = np.where(ran, part, 0).sum(0)
            found.append(np.where(ran.any(0), sums / np.maximum(ran.sum(0), 1), np.nan))
            first = last
        return np.stack(found).astype(np.float32)

    def call(self, site: Site) -> RecordedCall:
        """The recorded call of a site.

        Raises:
            InvalidInputError: It was not recorded, or its file is damaged.
        """
        found = self.calls.get(site)
        if found is None:
            raise InvalidInputError(f"transformer, layer, step {site}: not recorded; recorded are {sorted(self.calls)}")
        if isinstance(found, RecordedCall):
            return found
        assert self.folder is not None, "names belong to a folder"
        return load_call(self.folder / found)

    def save(self, folder: Path) -> None:
        """Write the run; the index comes last.

        Raises:
            OutputError: The folder cannot be written.
        """
        index: dict[str, Any] = {
            "format": FORMAT,
            "names": list(self.names),
            "ends": list(self.ends),
            "left_out": self.left_out,
            "calls": [],
        }
        groups = {"density": self.density, "recall": self.recall, "age": self.age}
        tables = {f"{name}_{i}": table for name, group in groups.items() for i, table in enumerate(group)}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            np.savez(folder / TABLES, allow_pickle=False, **tables)
            for site in sorted(self.calls):
                save_call(self.call(site), folder / _file_name(site))
                index["calls"].append(list(site))
            write_json(folder / INDEX, index)
        except OSError as error:
            raise OutputError(f"output {str(folder)!r} cannot be written: {error.strerror or error}") from error

    @classmethod
    def load(cls, folder: Path) -> RecordedRun:
        """Read what `save` wrote; calls are read when they are asked for.

        Raises:
            InvalidInputError: There is no recorded run, or it is damaged.
        """
        try:
            if (folder / INDEX).stat().st_size > MAX_INDEX_BYTES:
                raise ValueError("too large")
            index = json.loads((folder / INDEX).read_text())
            if index["format"] != FORMAT:
                raise ValueError("another format")
            sites = [(int(t), int(layer), int(step)) for t, layer, step in index["calls"]]
            names = tuple(map(str, index["names"]))
            with np.load(folder / TABLES, allow_pickle=False) as data:
                tables = {
                    name: tuple(data[f"{name}_{i}"].astype(np.float32) for i in range(len(names)))
                    for name in ("density", "recall", "age")
                }
            return cls(
                names=names,
                **tables,
                ends=tuple(map(float, index["ends"])),
                calls={site: _file_name(site) for site in sites},
                left_out=int(index["left_out"]),
                folder=folder,
            )
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise InvalidInputError(f"{str(folder)!r} holds no recorded run: {error}") from error


def head_density(stats: RunStatistics, transformer: int, num_layers: int, num_heads: int) -> FloatArray:
    """Density of each head in each step, mean over branches: `[steps, layers, heads]`, NaN where nothing ran.

    Args:
        stats: Of a run; reads the device.
        transformer: Number of the transformer.
        num_layers: Its layers.
        num_heads: Heads of each.
    """
    steps = 1 + max((record.step for record in stats.records.values()), default=-1)
    done, total = np.zeros((steps, num_layers, num_heads)), np.zeros((steps, num_layers, 1))
    for record in stats.records.values():
        if record.transformer == transformer:
            pairs = record.dense_pairs / num_heads
            kept = pairs if record.kept_pairs is None else record.kept_pairs.cpu().numpy()
            done[record.step, record.layer] += kept
            total[record.step, record.layer] += pairs
    with np.errstate(invalid="ignore"):
        return (done / total).astype(np.float32)


def save_call(call: RecordedCall, path: Path) -> None:
    """Write one call; heads are separate arrays, so that one can be read without the others."""
    arrays: dict[str, Any] = {}
    launches = []
    for number, launch in enumerate(call.launches):
        mask = launch.mask
        parts = {
            "indices": mask.indices,
            "counts": mask.counts,
            "queries": launch.query_order,
            "keys": launch.key_order,
        }
        arrays |= {f"{name}_{number}": part.numpy() for name, part in parts.items()}
        layouts = [dataclasses.asdict(layout) for layout in (mask.q_layout, mask.kv_layout)]
        launches.append({"heads": list(launch.heads), "layouts": layouts})
    for head in range(call.num_heads):
        arrays |= {f"query_{head}": _bits(call.query[head]), f"key_{head}": _bits(call.key[head])}
    plain = ("transformer", "layer", "step", "branch", "phase", "dense_reason")
    meta = {
        "format": FORMAT,
        **{name: getattr(call, name) for name in plain},
        "grid": dataclasses.asdict(call.grid),
        "dtype": str(call.query.dtype).removeprefix("torch."),
        "heads": call.num_heads,
        "launches": launches,
    }
    np.savez(path, allow_pickle=False, meta=np.array(json.dumps(meta)), **arrays)


def load_call(path: Path) -> RecordedCall:
    """Read what `save_call` wrote.

    Raises:
        InvalidInputError: The file is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as data:
            meta = json.loads(str(data["meta"]))
            if meta.pop("format") != FORMAT:
                raise ValueError("another format")
            dtype, heads, launches = getattr(torch, meta.pop("dtype")), meta.pop("heads"), meta.pop("launches")
            query, key = (
                torch.stack([torch.from_numpy(data[f"{name}_{head}"]).view(dtype) for head in range(heads)])
                for name in ("query", "key")
            )
            return RecordedCall(
                **{**meta, "grid": VideoGrid(**meta["grid"])},
                query=query,
                key=key,
                launches=tuple(_read_launch(data, number, one) for number, one in enumerate(launches)),
            )
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        EOFError,
        RuntimeError,
        zipfile.BadZipFile,
    ) as error:
        raise InvalidInputError(f"recorded call {path.name!r} is damaged: {error}") from error


def _read_launch(data: Any, number: int, entry: dict[str, Any]) -> RecordedLaunch:
    q_layout, kv_layout = (
        TileLayout(**{**layout, "segments": tuple(layout["segments"])}) for layout in entry["layouts"]
    )
    indices, counts, queries, keys = (
        torch.from_numpy(data[f"{name}_{number}"]) for name in ("indices", "counts", "queries", "keys")
    )
    return RecordedLaunch(tuple(entry["heads"]), BlockMask(indices, counts, q_layout, kv_layout), queries, keys)


def _bits(x: torch.Tensor) -> NDArray[Any]:
    """As NumPy has no bfloat16, two-byte types are kept as integers of the same bits."""
    found: NDArray[Any] = (x.view(torch.int16) if x.element_size() == 2 else x).numpy()
    return found


def _file_name(site: Site) -> str:
    return "call-{}-{}-{}.npz".format(*site)
