"""Searches of a server: one folder each, which a stopped search goes on from, also after a restart.

`request.json` (what was asked for), `run/` (what `fastdit.search` keeps), `rounds/` (verified plans), `plan.json` (the
result), `error.txt` (why it failed).
"""

from __future__ import annotations

import json
import re
import secrets
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from fastdit import Plan
from fastdit.errors import ConfigError, InvalidInputError, OutputError, PlanError
from fastdit.search.progress import SearchProgress, read_progress
from fastdit.validation import check_count, check_fraction, check_positive
from fastdit.whole_files import write_json
from fastdit_ui.settings import MAX_PROMPT, MAX_STEPS

NAME = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{6}")
ROUND_HEADERS = ["round", "plan", "density", "PSNR, dB", "SSIM", "runs", "promise", "on the front"]
AIMS = ("min_psnr", "min_ssim", "density", "speedup")
MAX_PROMPTS = 64
MAX_REQUEST_BYTES = 1 << 20
Outcome = Literal["unfinished", "done", "failed"]


@dataclass(frozen=True, kw_only=True)
class SearchRequest:
    """A search that a page asks for.

    Args:
        model: The model.
        prompts: Calibration prompts.
        aim: `min_psnr`, `min_ssim`, `density` or `speedup`.
        value: Of the aim.
        call: Arguments of the pipeline call.
        num_measured: Prompts to measure on; the others verify the promise.
        max_rounds: Verification rounds at most.
        seed: First seed.

    Raises:
        ConfigError: A field is out of range.
    """

    model: str
    prompts: tuple[str, ...]
    aim: str = "min_psnr"
    value: float = 30.0
    call: dict[str, Any] = field(default_factory=dict)
    num_measured: int = 1
    max_rounds: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        prompts = tuple(line.strip() for line in self.prompts if line.strip())
        object.__setattr__(self, "prompts", prompts)
        if not 1 <= len(prompts) <= MAX_PROMPTS or max(map(len, prompts)) > MAX_PROMPT:
            raise ConfigError(
                f"prompts: {len(prompts)} given: accepted are 1 to {MAX_PROMPTS} lines of at most {MAX_PROMPT} "
                "characters"
            )
        if self.aim not in AIMS:
            raise ConfigError(f"aim={self.aim!r}: accepted are {', '.join(AIMS)}")
        check = check_fraction if self.aim in ("min_ssim", "density") else check_positive
        check(self.aim, self.value)
        check_count("num_measured", self.num_measured, 1)
        check_count("max_rounds", self.max_rounds, 1)
        check_count("seed", self.seed)
        steps = self.call.get("num_inference_steps", 1)
        if not 1 <= steps <= MAX_STEPS:
            raise ConfigError(f"steps={steps}: accepted are 1 to {MAX_STEPS}")


@dataclass(frozen=True, kw_only=True)
class SearchView:
    """What a page shows of a search.

    Args:
        name: Its folder's name.
        request: What was asked for.
        outcome: Whether it has ended.
        progress: How far it is.
        plans: Verified plans by the digest of their round.
        plan: The result.
        error: Why it failed.
    """

    name: str
    request: SearchRequest
    outcome: Outcome
    progress: SearchProgress
    plans: dict[str, Plan]
    plan: Plan | None
    error: str | None


class SearchStore:
    """The searches of an output folder.

    Args:
        root: Their folder; made when the first one starts.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def list(self) -> list[str]:
        """Names, newest first."""
        if not self.root.is_dir():
            return []
        return sorted((path.name for path in self.root.iterdir() if self._is_search(path)), reverse=True)

    def folder(self, name: str) -> Path:
        """Where a search lies.

        Raises:
            InvalidInputError: There is none of this name.
        """
        path = self.root / str(name)
        if not isinstance(name, str) or not NAME.fullmatch(name) or not self._is_search(path):
            raise InvalidInputError(f"search {str(name)[:80]!r} is not on this server; {len(self.list())} are")
        return path

    def create(self, request: SearchRequest) -> str:
        """Make the folder of a new search; its name.

        Raises:
            OutputError: It cannot be written.
        """
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
        try:
            (self.root / name / "rounds").mkdir(parents=True)
        except OSError as error:
            raise OutputError(f"search {name} cannot be written: {error.strerror or error}") from error
        write_json(self.root / name / "request.json", asdict(request))
        return name

    def request(self, name: str) -> SearchRequest:
        """What a search was asked for.

        Raises:
            InvalidInputError: There is none of this name, or its folder is damaged.
        """
        path = self.folder(name) / "request.json"
        try:
            if path.stat().st_size > MAX_REQUEST_BYTES:
                raise ValueError("too large")
            data = json.loads(path.read_text(encoding="utf-8"))
            return SearchRequest(**{**data, "prompts": tuple(data["prompts"])})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidInputError(f"search {name} is damaged: {error}") from error

    def keep_round(self, name: str, plan: Plan) -> None:
        """Keep a verified plan."""
        digest = plan.model_copy(update={"measured": {}}).digest()[:16]
        path = self.folder(name) / "rounds" / f"{digest}.json"
        if not path.exists():
            plan.save(path)

    def finish(self, name: str, plan: Plan) -> None:
        """Keep the result."""
        (self.folder(name) / "error.txt").unlink(missing_ok=True)
        plan.save(self.folder(name) / "plan.json")

    def note_error(self, name: str, message: str | None) -> None:
        """Say why a search failed, or that it goes on."""
        path = self.folder(name) / "error.txt"
        if message is None:
            path.unlink(missing_ok=True)
        else:
            path.write_text(message[:2000])

    def view(self, name: str) -> SearchView:
        """What a page shows of a search.

        Raises:
            InvalidInputError: There is none of this name, or its folder is damaged.
        """
        folder = self.folder(name)
        plan = _read_plan(folder / "plan.json")
        error = _read_text(folder / "error.txt")
        plans = {path.stem: _read_plan(path) for path in (folder / "rounds").glob("*.json")}
        return SearchView(
            name=name,
            request=self.request(name),
            outcome="done" if plan is not None else "failed" if error is not None else "unfinished",
            progress=read_progress(folder / "run"),
            plans={digest: one for digest, one in plans.items() if one is not None},
            plan=plan,
            error=error,
        )

    def _is_search(self, path: Path) -> bool:
        inside = path.is_dir() and not path.is_symlink() and NAME.fullmatch(path.name) is not None
        return inside and (path / "request.json").is_file()


def _read_plan(path: Path) -> Plan | None:
    try:
        return Plan.load(path) if path.is_file() and not path.is_symlink() else None
    except PlanError:
        return None


def _read_text(path: Path) -> str | None:
    return path.read_text(errors="replace")[:2000] if path.is_file() and not path.is_symlink() else None
