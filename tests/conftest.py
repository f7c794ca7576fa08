"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest

pytest_plugins = ["tiny_campaign"]

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real data sets: $FINETRIAL_DATA, or `shared/data` beside the repository; skips where absent."""
    folder = Path(os.environ.get("FINETRIAL_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder} (set FINETRIAL_DATA)")
    return folder
