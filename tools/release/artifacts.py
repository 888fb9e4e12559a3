"""Checks of the files that an index gets: names, contents, metadata, and how large they are.

The rule for contents is equality with what git tracks: nothing that lies about in a working tree is published, and
nothing is left out. Reads archives; no network.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import re
import tarfile
from collections.abc import Iterator, Sequence
from configparser import ConfigParser
from email.message import Message
from email.parser import Parser
from pathlib import Path, PurePosixPath
from typing import Final
from zipfile import ZipFile

from tools.release.projects import URLS, Project

MAX_WHEEL_BYTES: Final = 1_000_000
"""Of one wheel; above it, somebody has added data by accident."""
MAX_BYTES_OF: Final = {"llmopt-plugin-local": 6_000_000}
"""Wheels that hold a model."""
_SDIST_EXTRAS: Final = {".gitignore", "PKG-INFO"}
_FENCED: Final = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_LINKS: Final = re.compile(r"\]\(([^)\s]+)\)|^\[[^\]]+\]:\s*(\S+)|(?:src|href)=[\"']([^\"']+)", re.MULTILINE)


def expected_files(projects: Sequence[Project]) -> dict[str, Project]:
    """The files that belong to a release, by name."""
    return {
        name: project
        for project in projects
        for name in (f"{project.stem}-py3-none-any.whl", f"{project.stem}.tar.gz")
    }


def folder_problems(folder: Path, projects: Sequence[Project]) -> list[str]:
    """Files that are missing in a folder, or that nobody expects there."""
    found = {path.name for path in folder.iterdir() if path.suffix in {".whl", ".gz"}}
    expected = set(expected_files(projects))
    return [
        *(f"{name} was not built" for name in sorted(expected - found)),
        *(f"{name} belongs to no project" for name in sorted(found - expected)),
    ]


def wheel_problems(path: Path, project: Project, root: Path, tracked: frozenset[Path]) -> list[str]:
    """What is wrong with a wheel."""
    info = f"{project.stem}.dist-info"
    with ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    wanted = {
        (PurePosixPath(package.name) / file.relative_to(package)).as_posix(): file
        for package in project.packages
        for file in tracked
        if file.is_relative_to(package)
    }
    metadata = Parser().parsestr(files[f"{info}/METADATA"].decode())
    return [
        f"{path.name}: {problem}"
        for problem in (
            *_difference(set(wanted), {name for name in files if not name.startswith(f"{info}/")}),
            *(
                f"{name} is not the file in git"
                for name, file in wanted.items()
                if name in files and files[name] != (root / file).read_bytes()
            ),
            *_record_problems(files, f"{info}/RECORD"),
            *_metadata_problems(metadata, project, tracked),
            *(
                f"the licence file {name} is missing"
                for name in metadata.get_all("License-File", [])
                if f"{info}/licenses/{name}" not in files
            ),
            *_entry_point_problems(files.get(f"{info}/entry_points.txt", b"").decode(), project),
            *(
                f"{name} names the folder of this machine"
                for name, data in files.items()
                if str(root).encode() in data
            ),
            *_size_problems(path, project),
        )
    ]


def sdist_problems(path: Path, project: Project, tracked: frozenset[Path]) -> list[str]:
    """What is wrong with a source distribution."""
    with tarfile.open(path) as archive:
        members = archive.getmembers()
    names = {PurePosixPath(member.name).relative_to(project.stem).as_posix() for member in members}
    source = {
        file.relative_to(project.folder).as_posix() for file in tracked if file.is_relative_to(project.folder)
    }
    needed = {
        file.relative_to(project.folder).as_posix()
        for file in tracked
        for package in project.packages
        if file.is_relative_to(package)
    }
    needed |= {"pyproject.toml", "README.md", "LICENSE", "PKG-INFO"}
    # The core's folder is the whole repository: its archive holds what is named here, and no more.
    allowed = needed | {"CHANGELOG.md"} if project.folder == Path() else source
    return [
        f"{path.name}: {problem}"
        for problem in (
            *(f"{name} is missing" for name in sorted(needed - names)),
            *(f"{name} does not belong into it" for name in sorted(names - allowed - _SDIST_EXTRAS)),
            *(f"{member.name} is not a regular file" for member in members if not member.isfile()),
        )
    ]


def _difference(wanted: set[str], found: set[str]) -> Iterator[str]:
    yield from (f"{name} is missing" for name in sorted(wanted - found))
    yield from (f"{name} is not in git" for name in sorted(found - wanted))


def _record_problems(files: dict[str, bytes], record: str) -> Iterator[str]:
    rows = {row[0]: row[1] for row in csv.reader(files[record].decode().splitlines())}
    yield from (f"RECORD does not list {name}" for name in sorted(set(files) - set(rows)))
    yield from (f"RECORD lists {name}, which is missing" for name in sorted(set(rows) - set(files)))
    for name in sorted(set(files) & set(rows) - {record}):
        digest = base64.urlsafe_b64encode(hashlib.sha256(files[name]).digest()).rstrip(b"=").decode()
        if rows[name] != f"sha256={digest}":
            yield f"{name} has another hash than RECORD says"


def _metadata_problems(metadata: Message, project: Project, tracked: frozenset[Path]) -> Iterator[str]:
    expected = {
        "Name": project.table["name"],
        "Version": project.version,
        "License-Expression": project.table["license"],
        "Description-Content-Type": "text/markdown",
    }
    for key, value in expected.items():
        if metadata[key] != value:
            yield f"{key} is {metadata[key]}, not {value}"
    found = dict(line.split(", ", 1) for line in metadata.get_all("Project-URL", []))
    if missing := URLS - set(found):
        yield f"project URLs are missing: {', '.join(sorted(missing))}"
    text = metadata.get_payload()
    assert isinstance(text, str)
    yield from link_problems(text, found.get("Repository", ""), tracked)


def link_problems(description: str, repository: str, tracked: frozenset[Path]) -> Iterator[str]:
    """Links of a description that an index cannot follow: relative ones, and ones to files that are not there."""
    inside = re.compile(rf"{re.escape(repository)}/(?:blob|tree)/[^/]+/([^#]+)")
    for groups in _LINKS.findall(_FENCED.sub("", description)):
        target = "".join(groups)
        if not target.startswith(("https://", "#")):
            yield f"the link {target} is relative, and an index shows it"
        elif (match := inside.match(target)) and not any(file.is_relative_to(match[1]) for file in tracked):
            yield f"the link {target} names no file of the repository"


def _entry_point_problems(text: str, project: Project) -> Iterator[str]:
    parser = ConfigParser(delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment, method-assign] # names keep their case
    parser.read_string(text)
    found = {group: dict(parser[group]) for group in parser.sections()}
    expected = dict(project.table.get("entry-points", {}))
    if scripts := project.table.get("scripts"):
        expected["console_scripts"] = scripts
    if found != expected:
        yield "its entry points are not those of pyproject.toml"


def _size_problems(path: Path, project: Project) -> Iterator[str]:
    size, limit = path.stat().st_size, MAX_BYTES_OF.get(project.name, MAX_WHEEL_BYTES)
    if size > limit:
        yield f"it has {size:,} bytes; at most {limit:,} are expected"


def size_table(folder: Path, projects: Sequence[Project]) -> str:
    """Bytes and files of each distribution, as a table."""
    rows = [f"{'distribution':28}{'wheel':>12}{'installed':>12}{'files':>8}{'sdist':>12}"]
    for project in projects:
        wheel, sdist = folder / f"{project.stem}-py3-none-any.whl", folder / f"{project.stem}.tar.gz"
        with ZipFile(wheel) as archive:
            files = archive.infolist()
        installed = sum(file.file_size for file in files)
        rows.append(
            f"{project.name:28}{wheel.stat().st_size:12,}{installed:12,}{len(files):8,}{sdist.stat().st_size:12,}"
        )
    return "\n".join(rows)
