"""docs/plugins.md agrees with the code."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

import llmopt.typing
from llmopt import compatible, hookspecs
from llmopt.providers.hooks import HOOK_NAMES, ProviderHooks
from llmopt.testing.dialect import Samples
from llmopt_conformance.runner import CHECKS
from tests.test_third_party import ACME

PAGE = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("hook", sorted(HOOK_NAMES))
def test_every_hook_is_documented_with_its_exact_signature(hook: str) -> None:
    """Parameters, their types and the return type."""
    signature = str(inspect.signature(getattr(hookspecs, hook))).replace("'", "")
    assert f"| `{hook}{signature.replace('|', chr(92) + '|')}` |" in PAGE


def test_the_protocol_has_the_same_hooks() -> None:
    """Names, parameters and types; at runtime a plugin that subclasses it has none but its own."""
    (plugin,) = (
        each
        for each in ast.parse(Path(llmopt.typing.__file__).read_text()).body
        if isinstance(each, ast.ClassDef)
    )
    found = {
        each.name: f"{ast.unparse(each.args)} -> {ast.unparse(each.returns or plugin)}"
        for each in ast.walk(plugin)
        if isinstance(each, ast.FunctionDef)
    }
    declared = {
        name: str(inspect.signature(getattr(hookspecs, name))).replace("'", "") for name in HOOK_NAMES
    }
    assert found == {
        name: text.replace("(", "self, ", 1).replace(")", "", 1) for name, text in declared.items()
    }
    ProviderHooks("acme", type("Acme", (llmopt.typing.Plugin,), {})())


def test_every_documented_hook_exists() -> None:
    section = PAGE.split("\n## The hooks\n")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)\(", section, re.MULTILINE)) == HOOK_NAMES


def test_the_smallest_plugin_is_the_tested_one() -> None:
    """The page has the module and the project file of Acme, word for word."""
    assert BLOCKS[0] == (ACME / "llmopt_plugin_acme" / "__init__.py").read_text()
    project = (ACME / "pyproject.toml").read_text()
    for line in re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)[0].splitlines():
        assert line in project.splitlines()


def test_its_test_file_is_the_tested_one() -> None:
    shown = next(block for block in BLOCKS if "test_conformance = conformance(llmopt_plugin_acme)\n" in block)
    assert [line for line in shown.splitlines() if line] == [
        line for line in (ACME / "tests" / "test_acme.py").read_text().splitlines() if line
    ]


def test_every_family_of_checks_is_named() -> None:
    """And the page states no more checks than there are."""
    for family in {check.id.partition(".")[0] for check in CHECKS} | {"own-errors"}:
        assert f"`{family}`" in PAGE, family
    assert len(CHECKS) >= 190


def test_the_complete_examples_run() -> None:
    for block in BLOCKS:
        if any(sign in block for sign in ("import llmopt\n", "import evolve\n", "chat_names=")):
            exec(compile(block, "docs/plugins.md", "exec"), {})


def test_names_on_the_page_exist() -> None:
    """Those of the package, its dialect and the samples."""
    for name in re.findall(r"`llmopt\.(\w+)`", PAGE):
        assert hasattr(llmopt, name) or name in ("errors", "testing", "toml"), name
    for name in re.findall(r"compatible\.(\w+)", PAGE):
        assert hasattr(compatible, name), name
    for name in re.findall(r"^    (\w+)=", BLOCKS[-2], re.MULTILINE):
        assert hasattr(Samples, name), name
