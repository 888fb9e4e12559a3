"""Profiles of Hypothesis, what the garbage collector looks at, and folders of its own for every test."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.scale import NIGHTLY

# No deadline: an example that takes long on a busy machine is not a failure.
settings.register_profile("change", max_examples=30, deadline=None)
settings.register_profile("nightly", max_examples=800, deadline=None)
settings.load_profile("nightly" if NIGHTLY else "change")


def pytest_collection_finish() -> None:
    """Leave the 340,000 objects of 11,000 collected tests out of every later collection: a tenth of the whole run."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def numbered_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Paths of folders that do not exist yet. pytest's own numbering reads the folder for each of 10,000 tests."""
    home = tmp_path_factory.mktemp("home")
    return (home / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def own_folders(numbered_folders: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches and configuration of the person who runs the tests are neither read nor written."""
    folder = next(numbered_folders)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
