"""Build, check and install all distributions: ``python -m tools.release --help``."""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tools.release.artifacts import (
    expected_files,
    folder_problems,
    sdist_problems,
    size_table,
    wheel_problems,
)
from tools.release.index import serve
from tools.release.installs import CommandFailed, Transcript, fetch, install_with_pip, install_with_uv, try_it
from tools.release.projects import (
    Project,
    extra_problems,
    find_projects,
    metadata_problems,
    set_version,
    tracked_files,
    version_problems,
)
from tools.release.sbom import licence_problems, licences, write_sbom

ROOT: Final = Path(__file__).parents[2]
INSTALLED: Final = ("llmopt-plugin-azure", "llmopt[openai,local]")
"""A plugin that brings the core, and the core that brings plugins."""


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.release",
        description="Build all distributions at one version, check them, install them into clean environments, and "
        "write a bill of materials. docs/development/releasing.md describes a release from beginning to end.",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=ROOT / "dist",
        metavar="FOLDER",
        help="where the files go; it must be empty (default: dist)",
    )
    parser.add_argument(
        "--tag", help="the tag that is released: it must be the version, and the changelog must have its date"
    )
    parser.add_argument(
        "--set-version", metavar="VERSION", help="write this version into all projects, and stop"
    )
    parser.add_argument(
        "--no-install", action="store_true", help="build and check only: nothing is downloaded"
    )
    arguments = parser.parse_args()
    if arguments.set_version:
        for path in set_version(ROOT, arguments.set_version):
            print(path.relative_to(ROOT))
        return
    try:
        release(arguments.output.resolve(), tag=arguments.tag, install=not arguments.no_install)
    except (CommandFailed, subprocess.CalledProcessError) as error:
        sys.exit(str(error))


def release(output: Path, *, tag: str | None, install: bool) -> None:
    """Do everything that comes before publishing."""
    projects = find_projects(ROOT)
    _report(
        "projects",
        [*version_problems(ROOT, projects, tag), *metadata_problems(projects), *extra_problems(projects)],
    )
    if output.exists() and any(output.iterdir()):
        sys.exit(f"{output} is not empty: what lies there would be published too")
    files = build(output, projects)
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *map(str, files)], check=True)
    _report("files", check(output, projects))
    print(size_table(output, projects))
    if install:
        with tempfile.TemporaryDirectory() as folder:
            try_installs(Path(folder), output, projects)
    (output / "SHA256SUMS").write_text(
        "".join(
            f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
            for path in sorted(output.iterdir())
        ),
        "utf-8",
    )


def _report(what: str, problems: Sequence[str]) -> None:
    """Stop with a list of problems, or say that there is none."""
    if problems:
        sys.exit("\n".join([f"{what}:", *(f"  {problem}" for problem in problems)]))
    print(f"{what}: no problem")


def build(output: Path, projects: Sequence[Project]) -> list[Path]:
    """Build a source distribution of each project, and its wheel from that: so the archive is known to be enough.

    The build backends are those of this environment, whose versions requirements.txt pins with their hashes.
    """
    for project in projects:
        command = [
            sys.executable,
            "-m",
            "build",
            "--no-isolation",
            "--outdir",
            str(output),
            str(ROOT / project.folder),
        ]
        done = subprocess.run(
            command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if done.returncode:
            sys.exit(f"{project.name} cannot be built:\n{done.stdout}")
    return sorted(output.iterdir())


def check(output: Path, projects: Sequence[Project]) -> list[str]:
    """Every problem of the files in a folder."""
    tracked = tracked_files(ROOT)
    problems = folder_problems(output, projects)
    for name, project in expected_files(projects).items():
        path = output / name
        if path.suffix == ".whl" and path.exists():
            problems += wheel_problems(path, project, ROOT, tracked)
        elif path.exists():
            problems += sdist_problems(path, project, tracked)
    return problems


def try_installs(folder: Path, output: Path, projects: Sequence[Project]) -> None:
    """Install from an index on loopback with pip and uv, print the transcripts, and write the bill of materials."""
    house = folder / "house"
    fetch(house, output, projects)
    with serve(house) as url:
        hidden = {url: "$INDEX", sys.executable: "python3"}
        for install in (install_with_pip, install_with_uv):
            for what in INSTALLED:
                transcript = Transcript(folder / f"{install.__name__}-{what}", hidden)
                install(transcript, url, what)
                try_it(transcript, url, what)
                print("\n".join(["", f"# {what}, {install.__name__.replace('_', ' ')}", *transcript.lines]))
        everything = Transcript(folder / "everything", hidden)
        install_with_uv(everything, url, "llmopt[all]")
    python = everything.folder / "env" / "bin" / "python"
    bill = write_sbom(python, ROOT / "pyproject.toml", output / f"{projects[0].stem}.cdx.json")
    found = licences(bill)
    print(
        "\nlicences:", *(f"  {name}: {', '.join(names)}" for name, names in sorted(found.items())), sep="\n"
    )
    _report("licences", licence_problems(found))


if __name__ == "__main__":
    main()
