"""Registers and shared memory as noted for one version of Triton."""

import json
from pathlib import Path

import pytest
import triton

GOLDEN = Path(__file__).parent / "golden" / f"triton_{triton.__version__}.json"
# A change of more registers than this against the noted ones deserves a look.
REGISTER_TOLERANCE = 16


def compare(name, found, write):
    """Compare with the noted figures, or note them; figures of another version of Triton are nobody's to compare."""
    noted = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    figures = {"registers": found["registers"], "shared": found["shared"]}
    if write:
        noted[name] = figures
        GOLDEN.parent.mkdir(exist_ok=True)
        lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(noted[key])}" for key in sorted(noted))
        GOLDEN.write_text(f"{{\n{lines}\n}}\n")
        return
    if name not in noted:
        pytest.skip(f"no figures noted for {name}, Triton {triton.__version__}: run with --write-golden")
    assert figures["shared"] == noted[name]["shared"], name
    assert abs(figures["registers"] - noted[name]["registers"]) <= REGISTER_TOLERANCE, name
