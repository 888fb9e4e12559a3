"""The kit's tests use the same private cache and configuration folders as all others."""

from tests.conftest import own_folders

__all__ = ["own_folders"]
