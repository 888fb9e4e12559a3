"""The release command's checks: they pass for this repository, and each finds the mistake that it is for.

`.ci/nightly release` runs the command itself, with its downloads and installations.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tarfile
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urljoin
from zipfile import ZipFile

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

from tools.release.artifacts import folder_problems, link_problems, sdist_problems, wheel_problems
from tools.release.index import serve
from tools.release.projects import (
    Project,
    extra_problems,
    find_projects,
    metadata_problems,
    set_version,
    tracked_files,
    version_problems,
)
from tools.release.sbom import licence_problems, licences

ROOT = Path(__file__).parents[1]
PROJECTS = find_projects(ROOT)
(OPENAI,) = [each for each in PROJECTS if each.name == "llmopt-plugin-openai"]
WORKFLOW = ROOT / ".github" / "workflows" / "release.yml"


@pytest.fixture(scope="module")
def tracked() -> frozenset[Path]:
    """What git tracks here."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("the contents of a release are compared with git")
    return tracked_files(ROOT)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the distributions of one plugin."""
    folder = tmp_path_factory.mktemp("dist")
    for builder in (WheelBuilder, SdistBuilder):
        list(builder(str(ROOT / OPENAI.folder)).build(directory=str(folder), versions=["standard"]))
    return folder


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The files of this repository that a version stands in, as if the version were 0.1.0."""
    files = [each.folder / "pyproject.toml" for each in PROJECTS]
    for file in [*files, Path("core/llmopt/__init__.py")]:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    set_version(tmp_path, "0.1.0")
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 0.1.0 - unreleased\n")
    return tmp_path


def problems_of(root: Path, tag: str | None = None) -> list[str]:
    projects = find_projects(root)
    return [*version_problems(root, projects, tag), *metadata_problems(projects), *extra_problems(projects)]


def test_the_projects_are_of_one_version() -> None:
    """Version, requirements of each other, extras and links agree."""
    assert problems_of(ROOT) == []


def test_a_new_version_is_written_everywhere(copied: Path) -> None:
    """Only the changelog, which a person writes, does not have it yet."""
    changed = set_version(copied, "0.7.3")
    assert len(changed) == len(PROJECTS) + 1
    assert {each.version for each in find_projects(copied)} == {"0.7.3"}
    assert problems_of(copied) == ["CHANGELOG.md has no section 0.7.3"]
    requirements = [str(each) for each in find_projects(copied)[1].requirements if each.name == "llmopt"]
    assert requirements == ["llmopt<0.8,>=0.7.3"]


def test_after_1_0_a_major_version_ends_what_is_required(copied: Path) -> None:
    """By semantic versioning only a major version may break something."""
    set_version(copied, "2.4.0")
    assert "llmopt<3,>=2.4.0" in [str(each) for each in find_projects(copied)[1].requirements]


def edit(root: Path, file: str, old: str, new: str) -> None:
    text = (root / file).read_text()
    assert old in text
    (root / file).write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("file", "old", "new", "problem"),
    [
        pytest.param("plugins/azure/pyproject.toml", 'version = "0.1.0"', 'version = "0.1.1"',
            "llmopt-plugin-azure has version 0.1.1, llmopt has 0.1.0", id="version"),
        pytest.param("core/llmopt/__init__.py", '"0.1.0"', '"0.1.1"', "llmopt.__version__ is not 0.1.0", id="module"),
        pytest.param("plugins/azure/pyproject.toml", "llmopt>=0.1.0,<0.2", "llmopt>=0.2",
            "llmopt-plugin-azure requires llmopt>=0.2, which 0.1.0 does not meet", id="requirement"),
        pytest.param("plugins/azure/pyproject.toml", "llmopt>=0.1.0,<0.2", "llmopt",
            "llmopt-plugin-azure requires llmopt without a version", id="no bound"),
        pytest.param("pyproject.toml", "llmopt-plugin-azure>=", "llmopt-plugin-azur>=",
            "llmopt requires llmopt-plugin-azur, which is not in this repository", id="misspelt"),
        pytest.param("pyproject.toml", "llmopt[anthropic,", "llmopt[",
            "llmopt[all] is not llmopt[anthropic,azure,compatible,google,local,mistral,openai]", id="all"),
        pytest.param("plugins/azure/pyproject.toml", 'Issues = "', 'Bugs = "',
            "llmopt-plugin-azure has another urls than llmopt", id="links"),
    ],
)  # fmt: skip
def test_projects_that_disagree_are_found(copied: Path, file: str, old: str, new: str, problem: str) -> None:
    """Before anything is built."""
    edit(copied, file, old, new)
    assert any(each.startswith(problem) for each in problems_of(copied)), problems_of(copied)


def test_a_tag_needs_its_version_and_a_date(copied: Path) -> None:
    """A tag is what the world sees: the changelog must be finished by then."""
    assert problems_of(copied, "v0.1.1")[0] == "the tag is v0.1.1, the version 0.1.0"
    assert problems_of(copied, "v0.1.0") == ["CHANGELOG.md gives no date for 0.1.0: unreleased"]
    edit(copied, "CHANGELOG.md", "## 0.1.0 - unreleased", "## 0.1.0 - 2026-12-01")
    assert problems_of(copied, "v0.1.0") == []


def wheel_of(folder: Path) -> Path:
    return folder / f"{OPENAI.stem}-py3-none-any.whl"


def test_a_built_plugin_has_no_problem(built: Path, tracked: frozenset[Path]) -> None:
    """Names, contents, hashes, metadata, licences and entry points are right."""
    assert folder_problems(built, [OPENAI]) == []
    assert wheel_problems(wheel_of(built), OPENAI, ROOT, tracked) == []
    assert sdist_problems(built / f"{OPENAI.stem}.tar.gz", OPENAI, tracked) == []


INFO = f"{OPENAI.stem}.dist-info"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        pytest.param(lambda files: files | {"llmopt_plugin_openai/notes.txt": b"x"},
            "llmopt_plugin_openai/notes.txt is not in git", id="stray file"),
        pytest.param(lambda files: files | {"start.pth": b"import os"}, "start.pth is not in git", id="runs at start"),
        pytest.param(lambda files: {name: files[name] for name in files if not name.endswith("py.typed")},
            "llmopt_plugin_openai/py.typed is missing", id="missing file"),
        pytest.param(lambda files: files | {"llmopt_plugin_openai/__init__.py": b"x"},
            "llmopt_plugin_openai/__init__.py is not the file in git", id="changed file"),
        pytest.param(lambda files: files | {"llmopt_plugin_openai/__init__.py": str(ROOT).encode()},
            "llmopt_plugin_openai/__init__.py names the folder of this machine", id="path"),
        pytest.param(lambda files: files | {f"{INFO}/LICENSE": b""}, f"RECORD does not list {INFO}/LICENSE", id="not in RECORD"),
        pytest.param(lambda files: files | {f"{INFO}/METADATA": files[f"{INFO}/METADATA"] + b"\n[a](docs/x.txt)\n"},
            "the link docs/x.txt is relative, and an index shows it", id="link"),
        pytest.param(lambda files: files | {f"{INFO}/METADATA": files[f"{INFO}/METADATA"].replace(b"Apache-2.0", b"MIT")},
            "License-Expression is MIT, not Apache-2.0", id="licence"),
        pytest.param(lambda files: {name: files[name] for name in files if not name.endswith("NOTICE.txt")},
            "the licence file llmopt_plugin_openai/NOTICE.txt is missing", id="licence file"),
        pytest.param(lambda files: files | {f"{INFO}/entry_points.txt": b"[llmopt]\nopen_ai = x\n"},
            "its entry points are not those of pyproject.toml", id="entry points"),
        pytest.param(lambda files: files | {"data.bin": bytes(range(256)) * 4_000},
            "it has 1,0", id="size"),
    ],
)  # fmt: skip
def test_a_wrong_wheel_is_found(
    built: Path,
    tmp_path: Path,
    tracked: frozenset[Path],
    change: Callable[[dict[str, bytes]], dict[str, bytes]],
    problem: str,
) -> None:
    """Each planted mistake is told, with the file that it is in."""
    with ZipFile(wheel_of(built)) as archive:
        files = change({name: archive.read(name) for name in archive.namelist()})
    with ZipFile(wheel_of(tmp_path), "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    problems = wheel_problems(wheel_of(tmp_path), OPENAI, ROOT, tracked)
    assert any(each.startswith(f"{wheel_of(tmp_path).name}: {problem}") for each in problems), problems


def test_a_wrong_source_distribution_is_found(built: Path, tmp_path: Path, tracked: frozenset[Path]) -> None:
    """A file that git does not track, and one that is missing."""
    name = f"{OPENAI.stem}.tar.gz"
    with tarfile.open(built / name) as old, tarfile.open(tmp_path / name, "w:gz") as new:
        for member in old.getmembers():
            if not member.name.endswith("py.typed"):
                new.addfile(member, old.extractfile(member))
        new.addfile(tarfile.TarInfo(f"{OPENAI.stem}/.env"))
    assert sdist_problems(tmp_path / name, OPENAI, tracked) == [
        f"{name}: llmopt_plugin_openai/py.typed is missing",
        f"{name}: .env does not belong into it",
    ]


def test_a_folder_with_a_stray_file_is_found(built: Path) -> None:
    """An old wheel would be published with the others."""
    assert folder_problems(built, PROJECTS[:1]) == [
        f"{PROJECTS[0].stem}-py3-none-any.whl was not built",
        f"{PROJECTS[0].stem}.tar.gz was not built",
        f"{OPENAI.stem}-py3-none-any.whl belongs to no project",
        f"{OPENAI.stem}.tar.gz belongs to no project",
    ]


@pytest.mark.parametrize("project", PROJECTS, ids=lambda project: project.name)
def test_links_of_every_description_can_be_followed(project: Project, tracked: frozenset[Path]) -> None:
    """With the substitutions that pyproject.toml makes for the index."""
    text = (ROOT / project.folder / "README.md").read_text()
    hook = project.settings["tool"]["hatch"].get("metadata", {}).get("hooks", {}).get("fancy-pypi-readme", {})
    for each in hook.get("substitutions", []):
        text, count = re.subn(each["pattern"], each["replacement"], text)
        assert count, f"the pattern {each['pattern']} matches nothing"
    assert list(link_problems(text, project.table["urls"]["Repository"], tracked)) == []


def test_a_link_to_a_file_that_is_gone_is_found(tracked: frozenset[Path]) -> None:
    """An absolute link into the repository is checked against git."""
    text = "[a](https://h/us/llmopt/blob/main/pyproject.toml#tests), [b](https://h/us/llmopt/blob/main/gone.toml)"
    (problem,) = link_problems(text, "https://h/us/llmopt", tracked)
    assert problem == "the link https://h/us/llmopt/blob/main/gone.toml names no file of the repository"


def get(url: str) -> bytes:
    with urllib.request.urlopen(url) as response:
        body: bytes = response.read()
    return body


def test_the_local_index_has_the_pages_of_an_index(built: Path) -> None:
    """A page for each project under its normalised name, with hashes, metadata and versions of Python."""
    with serve(built) as url:
        assert b'href="/simple/llmopt-plugin-openai/"' in get(url)
        page = get(f"{url}LLMOpt_Plugin.OpenAI/").decode()
        href, digest, core = re.search(
            r'href="([^"#]+\.whl)#sha256=(\w+)" data-core-metadata="sha256=(\w+)"', page
        ).groups()  # type: ignore[union-attr] # a missing link fails the test
        assert 'data-requires-python="&gt;=3.11"' in page
        assert hashlib.sha256(get(urljoin(url, href))).hexdigest() == digest
        assert hashlib.sha256(get(urljoin(url, f"{href}.metadata"))).hexdigest() == core
        with pytest.raises(HTTPError, match="404") as refused:
            get(f"{url}other/")
        refused.value.close()


def test_licences_are_accepted_by_name() -> None:
    """One alternative of an expression is enough, and all parts of it are needed."""
    found = {
        "one": ["MIT"],
        "choice": ["GPL-3.0-only OR Apache-2.0"],
        "both": ["MIT AND BSD-3-Clause"],
        "strong": ["GPL-3.0-only"],
        "part": ["MIT AND GPL-3.0-only"],
    }
    assert [problem.split()[0] for problem in licence_problems(found)] == ["part", "strong"]


def test_licences_are_read_from_the_bill_of_materials() -> None:
    """As an expression, an SPDX name or a classifier; a package that names none is not accepted."""
    bill = {
        "components": [
            {"name": "expression", "licenses": [{"expression": "MIT OR Apache-2.0"}]},
            {"name": "id", "licenses": [{"license": {"id": "ISC"}}]},
            {
                "name": "classifier",
                "licenses": [{"license": {"name": "License :: OSI Approved :: Apache Software License"}}],
            },
            {"name": "silent"},
        ]
    }
    assert licences(bill) == {
        "expression": ["MIT OR Apache-2.0"],
        "id": ["ISC"],
        "classifier": ["Apache-2.0"],
        "silent": ["unknown"],
    }
    assert licence_problems(licences(bill)) == ["silent has the licence unknown"]


def test_the_workflow_publishes_every_distribution() -> None:
    """A new plugin must be added to its list."""
    published = set(re.findall(r"^ {10}- (llmopt-\S+)$", WORKFLOW.read_text(), re.MULTILINE))
    assert published == {each.name for each in PROJECTS} - {"llmopt"}


def test_the_workflow_pins_what_it_runs() -> None:
    """Actions by commit, and packages by hash: a tag can be moved to another commit."""
    text = WORKFLOW.read_text()
    assert len(re.findall(r"uses: [\w/-]+@[0-9a-f]{40} # v[\d.]+$", text, re.MULTILINE)) == text.count(
        "uses: "
    )
    assert text.count("pip install") == text.count("pip install --require-hashes") == 1
    lines = (ROOT / "tools/release/requirements.txt").read_text().splitlines()
    pinned = [line for line in lines if not line.startswith((" ", "#"))]
    assert pinned
    assert all("==" in line and line.endswith("\\") for line in pinned)


def test_requirements_pin_what_the_builds_need() -> None:
    """Builds run without isolation, so what pyproject.toml requires must be pinned there."""
    pinned = {
        line.partition("==")[0] for line in (ROOT / "tools/release/requirements.txt").read_text().splitlines()
    }
    for project in PROJECTS:
        needed = {re.split(r"[<>=]", text)[0] for text in project.settings["build-system"]["requires"]}
        assert needed <= pinned
