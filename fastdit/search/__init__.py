"""Search: which method each head follows in each phase of a run, under a promised quality.

The package is also the verb: `fastdit.search(pipe, prompts, min_psnr=30.0)` is `find_plan`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from fastdit.plan import Plan
from fastdit.search.allocation import FrontPoint, allocate, pareto_front
from fastdit.search.cost import CostModel
from fastdit.search.find_plan import find_plan
from fastdit.search.ladder import default_ladder

__all__ = ["CostModel", "FrontPoint", "allocate", "default_ladder", "find_plan", "pareto_front"]


class _Verb(ModuleType):
    """A module that can be called."""

    def __call__(self, pipe: Any, prompts: Any, **settings: Any) -> Plan:
        """See `find_plan`."""
        return find_plan(pipe, prompts, **settings)


sys.modules[__name__].__class__ = _Verb
