"""Runs every check for every family, and holds the outcomes against docs/compatibility.md, or writes it."""

import pytest
from compatibility_document import CellEnded, list_checks, read_cells, write_cells
from families import FAMILIES


def pytest_addoption(parser):
    parser.addoption(
        "--write-compatibility", action="store_true", help="write the outcomes of this run to docs/compatibility.md"
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "cell(group, check): a row of docs/compatibility.md, one cell per family")


def pytest_generate_tests(metafunc):
    if "family" in metafunc.fixturenames:
        metafunc.parametrize("family", FAMILIES, ids=lambda family: family.name)


@pytest.fixture(scope="session")
def dense_runs():
    """Latents of stock pipelines, by family."""
    return {}


@pytest.fixture
def dense(family, dense_runs):
    """Latents of the family's stock pipeline, computed once."""
    if family.name not in dense_runs:
        dense_runs[family.name] = family.run(family.build())
    return dense_runs[family.name]


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    marker = pyfuncitem.get_closest_marker("cell")
    if marker is None:
        return (yield)
    outcome = "pass"
    try:
        yield
    except CellEnded as end:
        outcome = str(end)
    place = (*marker.args, pyfuncitem.callspec.params["family"].title)
    pyfuncitem.user_properties.append(("cell", (place, outcome)))
    if not _writes(pyfuncitem.config):
        assert read_cells().get(place) == outcome, (
            "docs/compatibility.md differs: see its head for how to write it anew"
        )
    return True


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter, config):
    if not _writes(config):
        return
    reports = terminalreporter.stats.get("passed", [])
    found = dict(value for report in reports if report.when == "call" for _, value in report.user_properties)
    # Checks that failed or did not run keep the cells they had.
    cells = {**read_cells(), **found}
    titles = [family.title for family in FAMILIES]
    places = [(*check, title) for check in list_checks() for title in titles]
    write_cells({place: cells.get(place, "") for place in places}, titles)


def _writes(config):
    return config.getoption("write_compatibility", default=False)
