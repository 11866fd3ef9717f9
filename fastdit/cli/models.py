"""`fastdit models`: what can be enabled, and which models ship with the package."""

from __future__ import annotations

import json
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from fastdit.adapters import load_adapters


def models(*, json_output: Annotated[bool, Parameter(name="--json")] = False) -> None:
    """List the supported model families and the bundled models with their plans.

    Args:
        json_output: Print JSON instead of tables.
    """
    from fastdit_pipelines.bundled_models import BUNDLED_MODELS

    families = {adapter.family: list(adapter.transformer_classes) for adapter in load_adapters()}
    bundled = {model.name: model.description for model in BUNDLED_MODELS.values()}
    plans = {model.name: list(model.plans) for model in BUNDLED_MODELS.values()}
    if json_output:
        print(json.dumps({"families": families, "bundled": bundled, "plans": plans}))
        return
    table = Table("family", "transformer classes", title="supported families")
    for family, classes in families.items():
        table.add_row(family, ", ".join(classes))
    console = Console()
    console.print(table)
    table = Table("--model", "what it is", "--plan", title="bundled models")
    for name, description in bundled.items():
        table.add_row(name, description, ", ".join(plans[name]))
    console.print(table)
    console.print("Any other --model is a Diffusers folder or a Hub id whose transformer is of a supported class.")
