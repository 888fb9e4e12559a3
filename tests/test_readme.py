"""What the README and the documents show is run as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import llmopt

REPOSITORY = Path(__file__).parents[1]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def section(page: Path, heading: str) -> str:
    return page.read_text().split(f"\n{heading}\n", 1)[1]


WITH_EXAMPLES = [page for page in PAGES if blocks(page, "python")]
RUN_EACH = "import runpy, sys\nfor script in sys.argv[1:]: runpy.run_path(script, run_name='__main__')"


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=lambda page: page.name)
def test_python_examples_run(page: Path, tmp_path: Path) -> None:
    """Each block by its own names, in the repository; those of a page in one process."""
    scripts = []
    for number, code in enumerate(blocks(page, "python"), 1):
        scripts.append(tmp_path / f"{page.stem}-{number}.py")
        scripts[-1].write_text(code)
    acme = REPOSITORY / "tests" / "thirdparty" / "acme"
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(acme)])}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", RUN_EACH, *map(str, scripts)],
        cwd=REPOSITORY,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_have_targets(page: Path) -> None:
    """Every relative link names a file that is there."""
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_quick_start_embeds_this_page(tmp_path: Path) -> None:
    """The command of the first block, without its installation."""
    command = re.search(r"```\n(.*?)\n```", section(REPOSITORY / "README.md", "## Quick start"), re.DOTALL)
    assert command is not None
    install, embed = command[1].split(" && ")
    assert install.startswith("python -m pip install ")
    words = embed.replace("vectors.npy", str(tmp_path / "vectors.npy")).split()
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "vectors.npy").stat().st_size > 256 * 4


def test_the_plugin_of_the_readme_works(tmp_path: Path) -> None:
    """Its module is at most 25 lines, and its hooks answer."""
    module, project = (
        next(code for code in blocks(REPOSITORY / "README.md", "python") if "@hookimpl" in code),
        tomllib.loads(blocks(REPOSITORY / "README.md", "toml")[1]),
    )
    assert len(module.splitlines()) <= 25
    assert project["project"]["entry-points"]["llmopt"] == {"acme": "llmopt_plugin_acme"}
    from llmopt.providers.hooks import ProviderHooks

    namespace: dict[str, object] = {}
    exec(module, namespace)
    from types import SimpleNamespace

    hooks = ProviderHooks(
        "acme", SimpleNamespace(**{k: v for k, v in namespace.items() if not k.startswith("__")})
    )
    call = llmopt.EmbedCall(model="m")
    assert hooks.batch_limit(call, llmopt.Settings(provider="acme")).max_items == 96
