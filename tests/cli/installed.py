"""Plugins installed for one test: distributions in a folder that is put on the path."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def install(
    folder: Path,
    distribution: str,
    points: Mapping[str, str],
    modules: Mapping[str, str],
    group: str = "llmopt",
) -> None:
    """Lay out a distribution as pip does.

    Args:
        folder: where.
        distribution: its name and version, such as "other-1.0".
        points: its entry points.
        modules: its modules and their source.
        group: the group of its entry points.
    """
    name, _, version = distribution.rpartition("-")
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = "".join(f"{key} = {value}\n" for key, value in points.items())
    (info / "entry_points.txt").write_text(f"[{group}]\n{lines}")
    for module, source in modules.items():
        (folder / f"{module}.py").write_text(source)


def path_with(folder: Path) -> dict[str, str]:
    """An environment in which the folder is on Python's path, before what is there already."""
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
