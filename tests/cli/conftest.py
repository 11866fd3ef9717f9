"""What the tests of several commands share."""

import pytest
from tests_support import build_tiny_wan


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A tiny random Wan pipeline as `save_pretrained` leaves it; no test changes it."""
    path = tmp_path_factory.mktemp("model")
    build_tiny_wan().save_pretrained(path)
    return path
