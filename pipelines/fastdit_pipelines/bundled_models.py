"""Models that ship inside the wheel, and the settings they were made for; no weights are read here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class BundledModel:
    """A model that ships inside the wheel.

    Args:
        name: What `--model` takes.
        folder: A Diffusers pipeline folder with `defaults.json` beside `model_index.json`.
        description: One line for `fastdit models`.
    """

    name: str
    folder: Path
    description: str

    def defaults(self, section: str) -> dict[str, Any]:
        """Settings the model was made for.

        Args:
            section: `"call"` (arguments), `"methods"` (by name of the method), or `"sizes"` (clip sizes for
                measurements of cost growth, named by their thousands of self-attention tokens).
        """
        settings: dict[str, dict[str, Any]] = json.loads((self.folder / "defaults.json").read_text())
        return settings[section]

    @property
    def plans(self) -> dict[str, Path]:
        """Plans that `fastdit bench search` and `fastdit search` made for it, by name."""
        return {path.stem: path for path in sorted((self.folder / "plans").glob("*.json"))}


BUNDLED_MODELS = {
    "tiny": BundledModel(
        name="tiny",
        folder=Path(__file__).parent / "tiny" / "weights",
        description="a small Wan text-to-video model of moving shapes, trained by this project",
    )
}


def model_defaults(model: str) -> dict[str, Any]:
    """Default call arguments of a model; empty for models that are not bundled."""
    return BUNDLED_MODELS[model].defaults("call") if model in BUNDLED_MODELS else {}


def method_defaults(model: str, method: str) -> dict[str, Any]:
    """Settings of a sparse method that suit a model, e.g. its dense steps; empty for models that are not bundled."""
    return BUNDLED_MODELS[model].defaults("methods").get(method, {}) if model in BUNDLED_MODELS else {}


def model_plans(model: str) -> dict[str, Path]:
    """Plans that ship with a model, by name; none for models that are not bundled."""
    return BUNDLED_MODELS[model].plans if model in BUNDLED_MODELS else {}


def plan_file(given: Path) -> Path:
    """The file of a plan: `given`, or that of the bundled plan of this name if there is no such file."""
    known = {name: path for model in BUNDLED_MODELS.values() for name, path in model.plans.items()}
    return given if given.is_file() else known.get(str(given), given)


def model_folder(model: str) -> Path:
    """The folder of a bundled model; the name as a path for others, whether it exists or not."""
    return BUNDLED_MODELS[model].folder if model in BUNDLED_MODELS else Path(model)
