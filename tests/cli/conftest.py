"""An environment without the machine's own configuration, keys or files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.server import EmbeddingServer


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory, and an environment that sets nothing of llmopt's."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    for name in list(os.environ):
        if name.startswith(("LLMOPT_", "OPENAI_", "AZURE_", "MISTRAL_", "LLM_")) or name in {
            "NO_COLOR",
            "FORCE_COLOR",
            # pytest-xdist sets these for its workers; a test sets the size of its terminal.
            "COLUMNS",
            "LINES",
        }:
            monkeypatch.delenv(name)
    return folder


@pytest.fixture
def server() -> Iterator[EmbeddingServer]:
    """An OpenAI-compatible server on loopback."""
    with EmbeddingServer() as running:
        yield running


@pytest.fixture
def served(server: EmbeddingServer, here: Path) -> EmbeddingServer:
    """The same, configured in ./llmopt.toml as "near"."""
    (here / "llmopt.toml").write_text(f'[providers.near]\nplugin = "local"\nbase_url = "{server.url}"\n')
    return server
