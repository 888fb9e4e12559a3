"""The distributions of this repository, their one version, and what their ``pyproject.toml`` must say.

Reads files and asks git for the tracked ones; `set_version` writes. No network.
"""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

URLS: Final = frozenset({"Documentation", "Repository", "Changelog", "Issues"})
"""Every distribution has these links on its page of an index."""
_OWN_REQUIREMENT: Final = re.compile(r"(\bllmopt[a-z-]*(?:\[[a-z,]+\])?)>=[\d.]+\w*,<[\d.]+")
_VERSION_LINE: Final = re.compile(r'^((?:__)?version(?:__)? = )"[^"]+"$', re.MULTILINE)
_DATED: Final = re.compile(r"\d{4}-\d\d-\d\d")


@dataclass(frozen=True)
class Project:
    """One distribution.

    Attributes:
        folder: where its ``pyproject.toml`` is, relative to the repository; ``.`` for the core.
        settings: the whole of its ``pyproject.toml``.
    """

    folder: Path
    settings: dict[str, Any]

    @property
    def table(self) -> dict[str, Any]:
        """The table ``[project]``."""
        table: dict[str, Any] = self.settings["project"]
        return table

    @property
    def name(self) -> str:
        """The name of the distribution, normalised."""
        return canonicalize_name(self.table["name"])

    @property
    def version(self) -> str:
        """The version of the distribution."""
        version: str = self.table["version"]
        return version

    @property
    def stem(self) -> str:
        """What the names of its files begin with."""
        return f"{self.name.replace('-', '_')}-{self.version}"

    @property
    def packages(self) -> list[Path]:
        """The folders of its import packages, relative to the repository."""
        return [
            self.folder / each
            for each in self.settings["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
        ]

    @property
    def requirements(self) -> Iterator[Requirement]:
        """What it requires, by all of its extras too."""
        lists = [self.table.get("dependencies", []), *self.table.get("optional-dependencies", {}).values()]
        return (Requirement(text) for texts in lists for text in texts)


def find_projects(root: Path) -> list[Project]:
    """The core and the members of the workspace, the core first."""
    core = Project(Path(), _read(root / "pyproject.toml"))
    members = core.settings["tool"]["uv"]["workspace"]["members"]
    folders = sorted(path.parent for pattern in members for path in root.glob(f"{pattern}/pyproject.toml"))
    return [
        core,
        *(Project(folder.relative_to(root), _read(folder / "pyproject.toml")) for folder in folders),
    ]


def _read(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text("utf-8"))


def tracked_files(root: Path) -> frozenset[Path]:
    """The files that git tracks and that exist, relative to the repository."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=True, text=True)
    return frozenset(Path(name) for name in done.stdout.split("\0") if name and (root / name).is_file())


def version_problems(root: Path, projects: Sequence[Project], tag: str | None) -> list[str]:
    """What contradicts one version in all distributions, the module and the changelog.

    Args:
        root: the repository.
        projects: its distributions.
        tag: the tag that is being released, such as ``v0.2.0``; the changelog must then give the date.
    """
    version = projects[0].version
    problems = [
        f"{each.name} has version {each.version}, llmopt has {version}"
        for each in projects
        if each.version != version
    ]
    if f'__version__ = "{version}"' not in (root / "core/llmopt/__init__.py").read_text("utf-8"):
        problems.append(f"llmopt.__version__ is not {version}")
    heading = re.search(
        rf"^## {re.escape(version)} - (\S+)$", (root / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE
    )
    if heading is None:
        problems.append(f"CHANGELOG.md has no section {version}")
    if tag is not None and tag != f"v{version}":
        problems.append(f"the tag is {tag}, the version {version}")
    if tag is not None and heading is not None and not _DATED.fullmatch(heading[1]):
        problems.append(f"CHANGELOG.md gives no date for {version}: {heading[1]}")
    return problems


def metadata_problems(projects: Sequence[Project]) -> list[str]:
    """What the projects say wrongly of each other, of their links, or of Python."""
    core, names = projects[0], {each.name for each in projects}
    problems = []
    for project in projects:
        for requirement in project.requirements:
            name = canonicalize_name(requirement.name)
            if name not in names:
                # The names of a release are ours; any other name that looks so is a mistake, or somebody else's package.
                if name.startswith("llmopt"):
                    problems.append(f"{project.name} requires {name}, which is not in this repository")
            elif requirement.specifier and not requirement.specifier.contains(core.version):
                problems.append(f"{project.name} requires {requirement}, which {core.version} does not meet")
            elif not requirement.specifier and name != project.name:
                problems.append(f"{project.name} requires {name} without a version")
        problems += [
            f"{project.name} has another {key} than llmopt: {project.table.get(key)}"
            for key in ("urls", "requires-python", "license", "authors")
            if project.table.get(key) != core.table.get(key)
        ]
    if missing := URLS - set(core.table.get("urls", {})):
        problems.append(f"project URLs are missing: {', '.join(sorted(missing))}")
    return problems


def extra_problems(projects: Sequence[Project]) -> list[str]:
    """Each plugin is an extra of the core's, by its provider's name, and ``all`` has all of them."""
    extras = projects[0].table["optional-dependencies"]
    prefix = "llmopt-plugin-"
    plugins = {each.name.removeprefix(prefix) for each in projects if each.name.startswith(prefix)}
    problems = [
        f"llmopt[{name}] is not {prefix}{name}"
        for name in sorted(plugins)
        if [Requirement(text).name for text in extras.get(name, [])] != [f"{prefix}{name}"]
    ]
    if {extra for text in extras["all"] for extra in Requirement(text).extras} != plugins:
        problems.append(f"llmopt[all] is not llmopt[{','.join(sorted(plugins))}]")
    return problems


def set_version(root: Path, version: str) -> list[Path]:
    """Write a version into all projects, and what they require of each other; returns the changed files.

    The distributions are tested at one version together, so each requires at least this version of the others,
    and less than the next one that may break something: 0.x may with each x.
    """
    release = Version(version).release
    following = f"{release[0]}.{release[1] + 1}" if release[0] == 0 else f"{release[0] + 1}"
    projects = [root / each.folder / "pyproject.toml" for each in find_projects(root)]
    changed = []
    for path in [*projects, root / "core/llmopt/__init__.py"]:
        before = path.read_text("utf-8")
        after = _VERSION_LINE.sub(rf'\g<1>"{version}"', before, count=1)
        after = _OWN_REQUIREMENT.sub(rf"\g<1>>={version},<{following}", after)
        if after != before:
            path.write_text(after, "utf-8")
            changed.append(path)
    return changed
