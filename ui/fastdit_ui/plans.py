"""Plans that a server knows: those in `plans/` of its output folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from fastdit import Plan
from fastdit.errors import InvalidInputError, PlanError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
SUFFIX = ".json"


class PlanStore:
    """Plans by name.

    Args:
        root: Their folder; made when the first one is saved.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def list(self) -> list[str]:
        """Names, in order of the alphabet."""
        return sorted(path.stem for path in self.root.glob(f"*{SUFFIX}") if NAME.fullmatch(path.stem))

    def path(self, name: str) -> Path:
        """Where a plan of this name lies or would lie.

        Raises:
            InvalidInputError: The name is none.
        """
        if not isinstance(name, str) or not NAME.fullmatch(name) or (self.root / f"{name}{SUFFIX}").is_symlink():
            raise InvalidInputError(
                f"plan name {str(name)[:80]!r}: accepted are letters, digits, '.', '_' and '-', at most 80, "
                "beginning with a letter or digit"
            )
        return self.root / f"{name}{SUFFIX}"

    def load(self, name: str) -> Plan:
        """A plan by its name.

        Raises:
            InvalidInputError: The name is none.
            PlanError: There is no such plan, or it is damaged.
        """
        path = self.path(name)
        if not path.is_file():
            raise PlanError(f"plan {name!r} is not on this server: it has {', '.join(self.list()) or 'none'}")
        return Plan.load(path)

    def add_missing(self, plans: Mapping[str, Path]) -> None:
        """Copy plans from files; a name that is taken keeps the plan it has."""
        for name in plans.keys() - set(self.list()):
            self.save(Plan.load(plans[name]), name)

    def save(self, plan: Plan, name: str) -> Path:
        """Keep a plan under a name; an earlier one of the name is replaced."""
        path = self.path(name)
        self.root.mkdir(parents=True, exist_ok=True)
        plan.save(path)
        return path
