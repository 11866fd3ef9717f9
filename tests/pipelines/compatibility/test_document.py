"""The document has a cell for every check and family, and no other."""

import pytest
from compatibility_document import list_checks, read_cells, write_cells
from families import FAMILIES

OUTCOMES = ("pass", "refused: ", "not applicable: ")


def test_every_check_has_one_cell_per_family_and_none_is_empty(request):
    if request.config.getoption("write_compatibility", default=False):
        pytest.skip("the document is being written")
    cells = read_cells()
    assert list(cells) == [(*check, family.title) for check in list_checks() for family in FAMILIES]
    assert all(cell.startswith(OUTCOMES) and cell not in OUTCOMES[1:] for cell in cells.values()), cells


def test_the_document_is_read_as_it_was_written(tmp_path):
    cells = {("A", "one", "x"): "pass", ("A", "one", "y"): "refused: why", ("B", "two", "x"): "not applicable: no"}
    cells["B", "two", "y"] = "pass"
    write_cells(cells, ["x", "y"], tmp_path / "document.md")
    assert read_cells(tmp_path / "document.md") == cells
