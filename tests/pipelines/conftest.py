"""What the tests of several families share."""

import pytest

import fastdit


@pytest.fixture
def grids(monkeypatch):
    """Geometry of every transformer call."""
    found = []
    begin = fastdit.Session.begin_forward

    def note(session, transformer, grid, text_lengths=None):
        begin(session, transformer, grid, text_lengths)
        found.append(session.current_forward(transformer).grid)

    monkeypatch.setattr(fastdit.Session, "begin_forward", note)
    return found
