"""Profiles of Hypothesis, and folders of its own for every test."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.scale import NIGHTLY

# No deadline: an example that takes long on a busy machine is not a failure.
settings.register_profile("change", max_examples=60, deadline=None)
settings.register_profile("nightly", max_examples=800, deadline=None)
settings.load_profile("nightly" if NIGHTLY else "change")


@pytest.fixture(autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Caches and configuration of the person who runs the tests are neither read nor written."""
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
    return folder
