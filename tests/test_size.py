"""The numbers that the code must keep: the budgets of tests/size.toml, and the files and functions of one warm call.

tests/test_structure.py checks imports, exports and names.
"""

from __future__ import annotations

import ast
import functools
import io
import re
import sys
import tokenize
import tomllib
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

import llmopt
from tests.support.faults import FaultServer
from tests.test_structure import graph, modules, name_of, syntax_tree

CORE = Path(llmopt.__file__).parent
REPOSITORY = Path(__file__).parents[1]
LIMITS: dict[str, Any] = tomllib.loads((Path(__file__).parent / "size.toml").read_text())


def python_files() -> list[Path]:
    return sorted(CORE.rglob("*.py"))


def part_of(path: Path) -> str:
    """The part of a ring that a file belongs to: the file itself where a ring names it, else its package."""
    name = path.relative_to(CORE).with_suffix("").as_posix()
    named = {part for ring in LIMITS["rings"].values() for part in ring["parts"]}
    return name if name in named else name.partition("/")[0]


def docstring_lines(tree: ast.Module) -> set[int]:
    """The lines of docstrings, those below constants and attributes included."""
    return {
        line
        for node in ast.walk(tree)
        if isinstance(getattr(node, "body", None), list)
        for each in node.body  # type: ignore[attr-defined] # looked at above
        if isinstance(each, ast.Expr)
        and isinstance(each.value, ast.Constant)
        and isinstance(each.value.value, str)
        for line in range(each.lineno, (each.end_lineno or each.lineno) + 1)
    }


@functools.cache
def lines_of(path: Path) -> tuple[int, int]:
    """Code lines and comment lines of a file."""
    text = path.read_text()
    code: set[int] = set()
    comments: set[int] = set()
    layout = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            comments.add(token.start[0])
        elif token.type not in layout:
            code.update(range(token.start[0], token.end[0] + 1))
    return len(code - docstring_lines(syntax_tree(path))), len(comments)


@pytest.mark.parametrize("ring", LIMITS["rings"])
def test_a_ring_keeps_its_budget_of_code_lines(ring: str) -> None:
    """Over budget means: delete elsewhere, or split off a distribution."""
    limit = LIMITS["rings"][ring]
    lines = sum(lines_of(path)[0] for path in python_files() if part_of(path) in limit["parts"])
    assert lines <= limit["code_lines"], f"{ring}: {lines} code lines"


def test_every_file_belongs_to_a_ring() -> None:
    """No file escapes the budgets."""
    known = {part for ring in LIMITS["rings"].values() for part in ring["parts"]}
    assert {part_of(path) for path in python_files()} <= known


def test_the_number_of_files() -> None:
    """A file is a topic, not a class."""
    files = python_files()
    lines = sum(path.read_text().count("\n") for path in files)
    assert len(files) <= LIMITS["files"]["per_1000_lines"] * lines / 1_000


def test_no_file_and_no_function_is_too_long() -> None:
    """A file can be read in one sitting, a function without scrolling."""
    long = []
    for path in python_files():
        text = path.read_text()
        if text.count("\n") > LIMITS["files"]["lines"]:
            long.append(f"{path.relative_to(CORE)}: {text.count(chr(10))} lines")
        for node in ast.walk(syntax_tree(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                body = len(set(range(node.lineno, (node.end_lineno or 0) + 1)) - docstring_lines_of(node))
                if body > LIMITS["files"]["function_lines"]:
                    long.append(f"{path.relative_to(CORE)}:{node.lineno} {node.name}: {body} lines")
    assert not long


def docstring_lines_of(node: ast.FunctionDef | ast.AsyncFunctionDef) -> set[int]:
    first = node.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        return set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return set()


def test_comments_say_why_often_enough() -> None:
    """Not a goal, a sign: the codebases that we learn from have 3 to 10 comments in a hundred lines."""
    comments = sum(lines_of(path)[1] for path in python_files())
    lines = sum(path.read_text().count("\n") for path in python_files())
    assert comments >= LIMITS["files"]["comment_share"] * lines, f"{comments} of {lines}"


def test_few_files_serve_one_other_file_alone() -> None:
    """A file that only one other file imports is part of that file, unless it keeps a slow import apart."""
    importers = Counter(module for imported in graph().values() for module in imported)
    packages = {name_of(path) for path in modules() if path.stem == "__init__"}
    single = sorted(
        name
        for name, count in importers.items()
        if count == 1 and name not in packages and name not in LIMITS["walls"]
    )
    assert len(single) <= LIMITS["files"]["single_importer"], single


def test_every_wall_is_a_file() -> None:
    """An exception for a file that is gone would hide another one of its name."""
    assert set(LIMITS["walls"]) <= {name_of(path) for path in modules()}


def test_base_names_repeat_only_for_shared_topics() -> None:
    """Two files of one name are one topic in two layers."""
    stems = Counter(path.stem for path in modules() if path.stem not in {"__init__", "__main__"})
    repeated = {stem for stem, count in stems.items() if count > 1}
    assert repeated <= set(LIMITS["names"]["shared"])


def test_limits_are_called_max_and_min() -> None:
    """Limits are named ``MAX_X`` and ``MIN_X``, as everywhere in the field."""
    words = re.compile(r"\b_?(?:MOST|LONGEST|LEAST|SHORTEST)_\w+|\b\w+_(?:MOST|LONGEST|LEAST|SHORTEST)\b")
    assert not [f"{path}: {name}" for path, text in sources() for name in words.findall(text)]


def test_every_document_that_is_cited_is_in_the_repository() -> None:
    """A reader can open what a comment, a docstring or a page refers to."""
    # In code a bare lower-case name may be a file that a test makes; a path or a capital is a citation.
    in_code = re.compile(r"(?<![\w/.{<*])(?:[\w.-]*/[\w./-]*|[A-Z][\w-]*)\.md\b")
    in_pages = re.compile(r"(?<![\w/.{<*\[])[\w./-]*\w\.md\b(?!\])")
    # Specifications that were written for the work itself are cited by a title in capitals and a section.
    titles = re.compile(
        r"\b(?:RELIABILITY|PROVIDERS|DESIGN|HOUSE|SPEED|SCALE|EXTEND|FIELD|ERRORS|STYLE|PARTS)"
        r"(?:,? (?:section )?\d|\.md\b)"
    )
    missing = []
    for path, text in [*sources(), *pages()]:
        bases = ((REPOSITORY / path).parent, REPOSITORY, REPOSITORY / "docs")
        names = {".py": in_code, ".md": in_pages}.get(Path(path).suffix)
        for name in names.findall(text) if names else ():
            if not any((base / name).exists() for base in bases):
                missing.append(f"{path}: {name}")
        missing += [f"{path}: {title}" for title in titles.findall(text)]
    assert not missing, missing


def sources() -> list[tuple[str, str]]:
    """The path and the text of every Python and TOML file but this one, which names what it forbids."""
    return [
        (str(path.relative_to(REPOSITORY)), path.read_text())
        for folder in ("core", "conformance", "plugins", "tests", "benchmarks", "tools")
        for suffix in ("*.py", "*.toml")
        for path in sorted((REPOSITORY / folder).rglob(suffix))
        if path != Path(__file__)
    ]


def pages() -> list[tuple[str, str]]:
    """The path and the text of every page of documentation but the changelog, which tells of files that are gone."""
    return [
        (str(path.relative_to(REPOSITORY)), path.read_text())
        for path in sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")])
        if path.name != "CHANGELOG.md"
    ]


async def test_one_warm_embed_call_walks_through_few_files() -> None:
    """Counted with the interpreter's profiling hook, after a first call has made everything ready."""
    calls: list[set[CodeType]] = []
    prefix = f"{CORE}/"

    def profile(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(prefix):
            calls[-1].add(frame.f_code)

    async with FaultServer() as server:
        entry = {"plugin": "openai", "base_url": f"{server.base_url}/v1", "api_key": "key"}
        async with llmopt.AsyncClient(config={"providers": {"server": entry}}) as client:
            await client.embed("server/model", ["warm", "up"])
            # A timer of another call may fire in the middle of one of them on a busy machine.
            for number in range(6):
                calls.append(set())
                sys.setprofile(profile)
                try:
                    await client.embed("server/model", [f"one {number}", f"two {number}"])
                finally:
                    sys.setprofile(None)
    files = min((sorted({code.co_filename.removeprefix(prefix) for code in seen}) for seen in calls), key=len)
    functions = min(map(len, calls))
    assert len(files) <= LIMITS["call"]["files"], files
    assert functions <= LIMITS["call"]["functions"], functions
