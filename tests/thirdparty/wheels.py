"""Writes wheels, and creates virtual environments to install them in."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import ZipFile

_WHEEL = "Wheel-Version: 1.0\nGenerator: by hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def write_wheel(
    folder: Path, distribution: str, version: str, provider: str, files: Mapping[str, str]
) -> Path:
    """Write a wheel with these files; the first one is the module of a provider."""
    stem = f"{distribution.replace('-', '_')}-{version}"
    info = f"{stem}.dist-info"
    module = next(iter(files)).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    contents = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n",
        f"{info}/WHEEL": _WHEEL,
        f"{info}/entry_points.txt": f"[llmopt]\n{provider} = {module}\n",
    }
    lines = [f"{name},sha256={_digest(text)},{len(text.encode())}" for name, text in contents.items()]
    contents[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,"]) + "\n"
    path = folder / f"{stem}-py3-none-any.whl"
    with ZipFile(path, "w") as archive:
        for name, text in contents.items():
            archive.writestr(name, text)
    return path


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


def build_wheel(project: Path, folder: Path) -> Path:
    """The wheel of a project, built by its own build system and without a network."""
    command = [
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--wheel-dir",
        str(folder),
    ]
    _pip(*command, str(project))
    return next(folder.glob("*.whl"))


def _pip(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


class Environment:
    """A virtual environment that sees everything that is installed here, and what it has itself."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=False, symlinks=True)
        self.folder = folder
        self.python = folder / "bin" / "python"
        self.packages = next(folder.glob("lib/python*/site-packages"))
        here = [sysconfig.get_path("purelib"), *(path for path in sys.path if path.endswith("site-packages"))]
        lines = [f"import site; site.addsitedir({path!r})" for path in dict.fromkeys(here)]
        (self.packages / "outer.pth").write_text("\n".join(lines), "utf-8")

    def install(self, *wheels: Path) -> None:
        """Install wheels, with pip."""
        _pip("--python", str(self.python), "install", "--quiet", "--no-deps", "--no-index", *map(str, wheels))

    def uninstall(self, distribution: str) -> None:
        """Remove a distribution, with pip."""
        _pip("--python", str(self.python), "uninstall", "--quiet", "--yes", distribution)

    def files(self) -> set[str]:
        """Everything that is installed, by path."""
        found = (path.relative_to(self.packages).as_posix() for path in self.packages.rglob("*"))
        return {path for path in found if "__pycache__" not in path}

    def run(
        self, *arguments: str, path: tuple[Path, ...] = (), **environ: str
    ) -> subprocess.CompletedProcess[str]:
        """Run its Python; ``path`` comes before everything that is installed."""
        cleared = {
            name: value for name, value in os.environ.items() if not name.startswith(("LLMOPT", "PYTEST"))
        }
        return subprocess.run(
            [str(self.python), *arguments],
            env={**cleared, **environ, "PYTHONPATH": os.pathsep.join(map(str, path))},
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )

    def tell(self, code: str, *, path: tuple[Path, ...] = (), **environ: str) -> Any:
        """What a piece of code leaves in ``found``."""
        done = self.run("-c", f"import json\n{code}\nprint(json.dumps(found))", path=path, **environ)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.strip().splitlines()[-1])
