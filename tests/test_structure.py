"""The shape of the code, held by tests: layers, exports, imports, names."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import llmopt
from llmopt._exports import MODULES

CORE = Path(llmopt.__file__).parent
REPOSITORY = Path(__file__).parents[1]

LAYERS = (
    {"errors", "_exports"},
    {"values"},
    {"policies", "decoding"},
    {"transport", "config", "cache"},
    {"hookspecs"},
    {"compatible", "known_models"},
    {"providers"},
    {"engine"},
    {"operations"},
    {"client"},
    {"cli", "testing"},
    {"__main__"},
)
"""From the bottom up: a file imports from its own layer and from those below."""


def layer_of(module: str) -> int:
    part = module.split(".")[1] if "." in module else "_exports"
    return next(number for number, names in enumerate(LAYERS) if part in names)


def imports_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= (
                {node.module} if node.module != "llmopt" else {f"llmopt.{name.name}" for name in node.names}
            )
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return found


def modules() -> list[Path]:
    return [path for path in sorted(CORE.rglob("*.py")) if path != CORE / "__init__.py"]


def name_of(path: Path) -> str:
    parts = path.relative_to(CORE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_run_downhill(path: Path) -> None:
    """No file imports from a layer above its own, except for annotations of errors."""
    own = layer_of(name_of(path))
    above = {module for module in imports_of(path) if module.startswith("llmopt.") and layer_of(module) > own}
    if name_of(path) == "llmopt.errors":
        # Under TYPE_CHECKING alone: the result that a PartialFailure carries.
        above -= {f"llmopt.values.{name}" for name in ("calls", "chat", "embeddings")}
    assert not above


def test_core_knows_no_provider_by_name() -> None:
    """Outside docstrings and the examples of the command line's help the core names none of the providers."""
    for path in modules():
        if path.parent.name == "cli":
            continue
        tree = ast.parse(path.read_text())
        docstrings = {
            node.body[0].value
            for node in ast.walk(tree)
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        after = {
            following.value
            for node in ast.walk(tree)
            if hasattr(node, "body") and isinstance(node.body, list)
            for following in node.body
            if isinstance(following, ast.Expr)
        }
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and node not in docstrings | after
            ):
                assert "openai" not in node.value.lower(), (path, node.lineno)
            if isinstance(node, ast.Name):
                assert "openai" not in node.id.lower(), (path, node.lineno)


def test_one_core_file_imports_httpx() -> None:
    """At run time httpx is known to one file; others name it for type checkers alone."""
    importing = []
    for path in modules():
        tree = ast.parse(path.read_text())
        guarded = {
            inner
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            for inner in ast.walk(node)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == "httpx" and node not in guarded:
                importing.append(name_of(path))
            if (
                isinstance(node, ast.Import)
                and any(name.name == "httpx" for name in node.names)
                and node not in guarded
            ):
                importing.append(name_of(path))
    # The kit for plugin authors gives them transports to test with; nothing imports it.
    assert {name for name in importing if not name.startswith("llmopt.testing.")} == {
        "llmopt.transport.httpx_transport"
    }


def test_import_is_nearly_free() -> None:
    """``import llmopt`` brings in nothing that is slow to import."""
    code = "import sys, llmopt; print(*sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    heavy = {
        "httpx",
        "aiohttp",
        "numpy",
        "structlog",
        "rich",
        "stamina",
        "cattrs",
        "click",
        "importlib_metadata",
    }
    assert not heavy & set(loaded)


def test_exports_are_complete_sorted_and_importable() -> None:
    """The names for type checkers and the names at run time are the same, and each is there."""
    source = (CORE / "__init__.py").read_text()
    typed = set(re.findall(r"from llmopt[\w.]* import (\w+) as \1", source))
    assert typed == set(MODULES)
    assert list(MODULES) == sorted(MODULES)
    for name in MODULES:
        assert getattr(llmopt, name) is not None
    assert set(dir(llmopt)) == {*MODULES, "__version__"}


def test_unknown_name_is_an_attribute_error() -> None:
    """A typo does not import anything."""
    with pytest.raises(AttributeError, match="AsyncClinet"):
        _ = llmopt.AsyncClinet  # type: ignore[attr-defined] # the typo is the point


def test_no_path_of_a_machine_and_no_lock_file_in_the_repository() -> None:
    """What is committed names nobody's home, and no lock file with addresses in it."""
    files = subprocess.run(
        ["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.split()
    assert not [name for name in files if name.endswith(".lock")]
    homes = re.compile(rf"{re.escape(str(Path.home()))}/|{re.escape(str(REPOSITORY))}/")
    for name in files:
        path = REPOSITORY / name
        if path.suffix in {".py", ".md", ".toml", ".json", ".txt", ".yml", ""} and path.is_file():
            assert not homes.search(path.read_text(errors="ignore")), name
