"""Installs what was built into clean environments, as users do it, and tries it there.

First `fetch` downloads the third-party packages through pip as this machine has it configured. Everything else talks only
to the index on loopback: a package of ours can then come from nowhere else, whatever an index on the network has under
the same name. Starts processes and writes folders.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from email.parser import Parser
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.release.artifacts import expected_files
from tools.release.index import metadata_of
from tools.release.projects import Project

OLD_PIP: Final = "23.2"
"""The oldest pip that is tried. Python 3.12.0, for one, came with 23.2.1."""
_SECRETS: Final = ("_KEY", "_TOKEN", "_SECRET", "_PASSWORD")


class CommandFailed(Exception):
    """A command of an installation failed; the transcript ends with its output."""


class Transcript:
    """Runs commands, and keeps what was typed and what was printed.

    Args:
        folder: where commands run, created here. Its path is left out of the text.
        hidden: other words that are replaced in the text.
    """

    def __init__(self, folder: Path, hidden: Mapping[str, str]) -> None:
        folder.mkdir()
        self.folder: Final = folder
        self._hidden: Final = {**hidden, f"{folder}/": "", str(folder): "."}
        self.lines: Final[list[str]] = []

    def run(self, *command: str, line: str | None = None) -> str:
        """Run a command in an environment that knows nothing of this machine's settings; returns its output.

        Args:
            command: the words, unless ``line`` is given.
            line: a line for the shell, in which the programs of the new environment come first.

        Raises:
            CommandFailed: it ended with another code than 0.
        """
        words = ["sh", "-c", line] if line else list(command)
        self._add(f"$ {line or ' '.join(words)}")
        done = subprocess.run(
            words,
            cwd=self.folder,
            env=_clean_environment(self.folder),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        self._add(done.stdout.rstrip())
        if done.returncode:
            raise CommandFailed("\n".join([*self.lines, f"exit code {done.returncode}"]))
        return done.stdout

    def _add(self, text: str) -> None:
        for word, replacement in self._hidden.items():
            text = text.replace(word, replacement)
        self.lines.extend(text.splitlines())


def _clean_environment(home: Path) -> dict[str, str]:
    """No settings of pip, uv, Python or llmopt, no keys, and an empty home folder."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PIP_", "UV_", "PYTHON", "LLMOPT_", "XDG_", "VIRTUAL_ENV"))
        and not name.endswith(_SECRETS)
    }
    search = os.pathsep.join([str(home / "env" / "bin"), kept.get("PATH", os.defpath)])
    # COLUMNS: tables are as wide as here, whatever terminal this runs in.
    return {
        **kept,
        "HOME": str(home),
        "PATH": search,
        "PIP_CONFIG_FILE": os.devnull,
        "UV_NO_CONFIG": "1",
        "COLUMNS": "110",
    }


def third_party(wheels: Iterable[Path], extras: Mapping[str, Sequence[str]]) -> list[str]:
    """What our wheels require of others, in the form that pip takes.

    Args:
        wheels: our wheels.
        extras: by distribution, the extras that are installed.
    """
    found = set()
    for wheel in wheels:
        metadata = Parser().parsestr((metadata_of(wheel) or b"").decode())
        wanted = ["", *extras.get(canonicalize_name(metadata["Name"]), ())]
        for text in metadata.get_all("Requires-Dist", []):
            requirement = Requirement(text)
            marker, requirement.marker = requirement.marker, None
            if not requirement.name.startswith("llmopt") and (
                marker is None or any(marker.evaluate({"extra": extra}) for extra in wanted)
            ):
                found.add(str(requirement))
    return sorted(found)


def fetch(house: Path, built: Path, projects: Sequence[Project]) -> None:
    """Fill a folder with our distributions and with the newest third-party packages that they may use."""
    house.mkdir(exist_ok=True)
    for name in expected_files(projects):
        shutil.copy(built / name, house)
    wheels = [house / f"{project.stem}-py3-none-any.whl" for project in projects]
    requirements = [*third_party(wheels, {"llmopt-conformance": ["pytest"]}), f"pip=={OLD_PIP}"]
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--only-binary",
        ":all:",
        "--dest",
        str(house),
    ]
    done = subprocess.run([*command, *requirements], check=False, capture_output=True, text=True)
    if done.returncode:
        raise CommandFailed(f"pip download: {done.stderr}")


def install_with_pip(transcript: Transcript, url: str, requirement: str) -> None:
    """Install a requirement with the oldest supported pip.

    Args:
        transcript: of the folder where the environment ``env`` is made.
        url: the index.
        requirement: what is installed.
    """
    transcript.run(sys.executable, "-m", "venv", "env")
    pip = ("env/bin/python", "-m", "pip", "--disable-pip-version-check")
    options = ("--quiet", "--no-cache-dir", "--index-url", url)
    transcript.run(*pip, "install", *options, f"pip=={OLD_PIP}")
    transcript.run(*pip, "--version")
    transcript.run(*pip, "install", *options, requirement)
    transcript.run(*pip, "check")
    transcript.run(*pip, "list")


def install_with_uv(transcript: Transcript, url: str, requirement: str) -> None:
    """The same with uv."""
    uv = (sys.executable, "-m", "uv")
    transcript.run(*uv, "--version")
    transcript.run(*uv, "venv", "--quiet", "--python", sys.executable, "env")
    options = ("--quiet", "--no-cache", "--python", "env", "--index-url", url)
    transcript.run(*uv, "pip", "install", *options, requirement)
    transcript.run(*uv, "pip", "check", "--python", "env")
    transcript.run(*uv, "pip", "list", "--python", "env")


def try_it(transcript: Transcript, url: str, requirement: str) -> None:
    """What a new user types first, then the conformance tests of each plugin: real requests over loopback."""
    transcript.run(line="llmopt --version")
    plugins = transcript.run(line="llmopt plugins").split()
    if "local" in plugins:
        transcript.run(line=_quick_start(transcript.folder))
    uv = (sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-cache", "--python", "env")
    transcript.run(*uv, "--index-url", url, "llmopt-conformance")
    parsed = Requirement(requirement)
    for provider in sorted(parsed.extras) or [parsed.name.removeprefix("llmopt-plugin-")]:
        transcript.run("env/bin/python", "-m", "llmopt_conformance", provider)


def _quick_start(folder: Path) -> str:
    """The first command of the README as an index shows it, without the installation."""
    (metadata,) = folder.glob("env/lib/python*/site-packages/llmopt-*.dist-info/METADATA")
    text = metadata.read_text("utf-8")
    block = re.search(r"^## Quick start\n+```\n(.+?)\n```", text, re.MULTILINE | re.DOTALL)
    assert block is not None
    install, command = block[1].split(" && ", 1)
    assert install == 'python -m pip install "llmopt[local]"', install
    return command
