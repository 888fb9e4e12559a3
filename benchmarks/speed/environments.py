"""Where each contender is installed: made on demand, given by path, or the environment this runs in."""

from __future__ import annotations

import subprocess
import sys
import venv
from collections.abc import Mapping
from pathlib import Path
from typing import Final

PACKAGES: Final[Mapping[str, tuple[str, ...]]] = {
    "openai": ("openai>=3", "numpy"),
    "litellm": ("litellm>=1.60,<1.107", "numpy"),
    "langchain": ("langchain-openai>=1", "numpy"),
    "baseten": ("baseten-performance-client>=0.1.16", "numpy"),
    "server": ("uvloop>=0.21", "numpy"),
}
"""Peers keep each other from their newest versions, so each has an environment of its own; so has the server."""

CHECKOUT: Final = "llmopt"
"""The environment of everything that needs llmopt or the floor's packages: the one this runs in, with this folder's code."""


class Environments:
    """The Python of each environment.

    Args:
        given: paths by name.
        folder: where environments that are missing are made, None to make none.
    """

    def __init__(self, given: Mapping[str, str], folder: Path | None) -> None:
        self._given: Final = given
        self._folder: Final = folder
        self._failures: Final[dict[str, str]] = {}

    def python(self, name: str) -> str:
        """The interpreter; this one where there is no other."""
        if name in self._given:
            return self._given[name]
        if name == CHECKOUT or self._folder is None or name in self._failures:
            return sys.executable
        home = self._folder / name
        python = home / ("Scripts" if sys.platform == "win32" else "bin") / "python"
        if not (home / "ready").exists():
            self._make(name, home, python)
        return sys.executable if name in self._failures else str(python)

    def failure(self, name: str) -> str | None:
        """Why an environment could not be made, None when it could."""
        return self._failures.get(name)

    def _make(self, name: str, home: Path, python: Path) -> None:
        print(f"making {home} with {', '.join(PACKAGES[name])}", flush=True)
        try:
            venv.create(home, with_pip=True, clear=True)
            command = [str(python), "-m", "pip", "install", "--quiet", *PACKAGES[name]]
            done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
        except (OSError, subprocess.SubprocessError) as error:
            self._failures[name] = f"{type(error).__name__}: {error}"[:200]
            return
        if done.returncode:
            told = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            self._failures[name] = (told or ["pip failed"])[-1][:200]
        else:
            (home / "ready").touch()
