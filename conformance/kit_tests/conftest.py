"""The kit's tests use the same private cache and configuration folders as all others."""

from tests.conftest import numbered_folders, own_folders

__all__ = ["numbered_folders", "own_folders"]
