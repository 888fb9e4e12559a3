"""The structure of the code: which package may import which, what is exported, what an import costs.

tests/test_size.py holds the numbers: budgets of lines, files and functions.
"""

from __future__ import annotations

import ast
import functools
import importlib
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import llmopt
from llmopt.hookspecs import PROJECT
from llmopt.providers.discovery import FALLBACK_GROUP

CORE = Path(llmopt.__file__).parent
REPOSITORY = Path(__file__).parents[1]

LAYERS = (
    {"errors", "_platform"},
    {"values"},
    {"log"},
    {"policies", "decoding", "transport", "config", "cache", "shared"},
    {"hookspecs"},
    {"reading"},
    {"compatible", "known_models"},
    {"providers"},
    {"engine"},
    {"operations"},
    {"client"},
    {"cli", "testing", "typing"},
    {"__main__"},
)
"""From the bottom up: a module imports from its own layer and from the layers below."""

TYPES_ONLY = {"llmopt.errors": {"llmopt.values.calls", "llmopt.values.chat", "llmopt.values.embeddings"}}
"""Upward imports under TYPE_CHECKING: errors name the value types that they carry."""


def layer_of(module: str) -> int:
    part = module.split(".")[1] if "." in module else "errors"
    return next(number for number, names in enumerate(LAYERS) if part in names)


@functools.cache
def syntax_tree(path: Path) -> ast.Module:
    """Parse a file once for all tests."""
    return ast.parse(path.read_text())


def modules() -> list[Path]:
    return [path for path in sorted(CORE.rglob("*.py")) if path != CORE / "__init__.py"]


def name_of(path: Path) -> str:
    parts = path.relative_to(CORE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path) for path in modules()}


def imports_of(path: Path, *, runtime: bool = False) -> set[str]:
    """The modules that a file imports, imports inside functions included.

    Args:
        path: A Python file.
        runtime: Leave out what stands under ``if TYPE_CHECKING:``.
    """
    tree = syntax_tree(path)
    skipped = set(_guarded(tree)) if runtime else set()
    return {name for node in ast.walk(tree) if node not in skipped for name in _imported(node)}


def _guarded(tree: ast.Module) -> Iterator[ast.AST]:
    """Every node in the body of an ``if TYPE_CHECKING:``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            for statement in node.body:
                yield from ast.walk(statement)


def _imported(node: ast.AST) -> Iterable[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        inner = {f"{node.module}.{alias.name}" for alias in node.names}
        # ``from llmopt.policies import clock`` imports a module, ``from llmopt.policies.clock import Clock`` a name.
        submodules = inner & NAMES
        return submodules if submodules == inner else {node.module, *submodules}
    return []


def graph() -> dict[str, set[str]]:
    """Each module of the core with the modules of the core that it imports at run time."""
    return {name_of(path): imports_of(path, runtime=True) & NAMES - {name_of(path)} for path in modules()}


def cycles(edges: dict[str, set[str]]) -> list[list[str]]:
    """The groups of nodes that reach each other."""
    reach = {start: _reachable(edges, start) for start in edges}
    groups = {
        frozenset(other for other in reach[start] if start in reach.get(other, ()))
        for start in edges
        if start in reach[start]
    }
    return sorted(sorted(group) for group in groups)


def _reachable(edges: dict[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    left = [start]
    while left:
        new = edges.get(left.pop(), set()) - seen
        seen |= new
        left += new
    return seen


def test_modules_import_only_from_their_own_or_lower_layers() -> None:
    """No module imports from a layer above its own, at run time or for type checkers."""
    upward = {
        f"{name} imports {other}"
        for path in modules()
        for name in [name_of(path)]
        for other in imports_of(path) & NAMES - TYPES_ONLY.get(name, set())
        if layer_of(other) > layer_of(name)
    }
    assert upward == set()


def test_errors_import_value_types_for_type_checkers_only() -> None:
    """At run time the errors stand alone at the bottom."""
    for name, types in TYPES_ONLY.items():
        (path,) = [each for each in modules() if name_of(each) == name]
        assert imports_of(path, runtime=True) & types == set()


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    """Imports inside functions count: they only hide a circle from the interpreter."""
    assert cycles(graph()) == []


def test_packages_do_not_import_each_other_in_a_circle() -> None:
    """Also within a layer: of two packages at most one imports the other."""
    packages: dict[str, set[str]] = {}
    for name, imported in graph().items():
        package = name.split(".")[1]
        packages.setdefault(package, set()).update(
            other.split(".")[1] for other in imported if other.split(".")[1] != package
        )
    assert cycles(packages) == []


def test_core_knows_no_provider_by_name() -> None:
    """Outside docstrings and the examples of the command line's help the core names none of the providers."""
    for path in modules():
        if path.parent.name == "cli":
            continue
        tree = syntax_tree(path)
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
        tree = syntax_tree(path)
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


def test_importing_llmopt_loads_nothing_slow() -> None:
    """``import llmopt`` brings in nothing that is slow to import."""
    code = "import sys, llmopt; print(*sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    heavy = {
        "httpx",
        "httptools",
        "numpy",
        "structlog",
        "rich",
        "stamina",
        "cattrs",
        "click",
        "importlib_metadata",
    }
    assert not heavy & set(loaded)


def test_the_page_of_public_names_lists_each_once() -> None:
    """A name that is exported is a promise: it stands in a group of docs/stability.md."""
    page = (REPOSITORY / "docs" / "stability.md").read_text()
    table = page.split("\n| group | names of `llmopt` |\n", 1)[1].split("\n\n", 1)[0]
    listed = re.findall(r"`(\w+)`", table)
    assert sorted(listed) == sorted(set(llmopt.__all__) - {"__version__"})


def test_public_modules_and_groups_are_those_of_the_page() -> None:
    """What the page says to be listed in ``__all__`` is; its entry-point groups are those that are read."""
    page = (REPOSITORY / "docs" / "stability.md").read_text()
    (row,) = re.findall(r"^\| (.+) \| the names in their `__all__` \|$", page, re.MULTILINE)
    for name in re.findall(r"`([\w.]+)`", row):
        module = importlib.import_module(name)
        assert all(hasattr(module, each) for each in module.__all__)
    (groups,) = re.findall(r"^\| entry-point groups (.+) \|", page, re.MULTILINE)
    assert set(re.findall(r"`([a-z.]+)`", groups)) >= {PROJECT, FALLBACK_GROUP}


def test_exports_are_sorted_importable_and_what_they_are_for_type_checkers() -> None:
    """Each line of the stub is an import of one name, and at run time the name is the object of that module."""
    *lines, version = syntax_tree(CORE / "__init__.pyi").body
    assert ast.unparse(version) == "__version__: str"
    names = []
    for line in lines:
        assert isinstance(line, ast.ImportFrom)
        assert line.module is not None
        (alias,) = line.names
        assert alias.asname == alias.name
        module = importlib.import_module(line.module)
        assert getattr(llmopt, alias.name) is getattr(module, alias.name)
        names.append(alias.name)
    assert set(dir(llmopt)) == {*names, "__version__"}
    assert [ast.unparse(line) for line in lines] == sorted(ast.unparse(line) for line in lines)


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
