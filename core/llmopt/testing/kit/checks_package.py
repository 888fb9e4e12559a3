"""The distribution, when the plugin is installed, and the names that its code takes from llmopt."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

import llmopt
from llmopt.markers import PROJECT
from llmopt.providers.discovery import FALLBACK, NAME
from llmopt.testing.kit.check import Family, NotApplicable, expect
from llmopt.testing.kit.subject import Subject

if TYPE_CHECKING:
    from importlib_metadata import EntryPoint

check: Final = Family("package")

_OPEN: Final = ("llmopt.compatible", "llmopt.errors", "llmopt.values", "llmopt.testing")
"""Modules of llmopt that a plugin may name; docs/plugins.md lists them."""
_REQUIREMENT: Final = re.compile(r"llmopt\s*(\[[^]]*\])?\s*\(?([^;)]*)", re.IGNORECASE)


def _entry_point(subject: Subject) -> EntryPoint:
    found = subject.sources.entry_point
    if found is None:
        raise NotApplicable("it is not installed: 'pip install -e .' it to have its packaging checked")
    return found


def _distribution(subject: Subject) -> Any:
    _entry_point(subject)
    found = subject.sources.distribution
    if found is None:
        raise NotApplicable("its entry point belongs to no distribution")
    return found


@check("entry-point")
def _entry(subject: Subject) -> None:
    """The entry point's key is a provider's name and its value is the module, without anything inside it."""
    point = _entry_point(subject)
    expect(NAME.match(point.name), f"the key is {point.name!r}.", "small letters, digits, - and _.")
    expect(not point.attr, f"the value is {point.value!r}.")


@check("only-claim")
def _only_claim(subject: Subject) -> None:
    """No other installed distribution claims the provider's name."""
    from llmopt.providers.discovery import discover

    found = discover()[_entry_point(subject).name.lower()]
    expect(found.conflict is None, str(found.conflict))


@check("name")
def _name(subject: Subject) -> None:
    """The distribution is called llmopt-plugin-NAME, so that the line that llmopt tells users to try is right."""
    distribution = _distribution(subject)
    if _entry_point(subject).group == FALLBACK:
        raise NotApplicable("a general plugin has many names")
    names = [point.name for point in distribution.entry_points if point.group == PROJECT]
    allowed = [f"llmopt-plugin-{name}" for name in names]
    found = distribution.name.lower().replace("_", "-")
    expect(
        found in [each.replace("_", "-") for each in allowed],
        f"it is called {found}, not {' or '.join(allowed)}.",
    )


@check("requires")
def _requires(subject: Subject) -> None:
    """The distribution requires llmopt with a lower and an upper bound, such as "llmopt>=0.1,<0.2"."""
    lines = [_REQUIREMENT.fullmatch(line.strip()) for line in _distribution(subject).requires or []]
    found = [match.group(2) for match in lines if match is not None]
    expect(found, "it does not require llmopt.")
    bounds = found[0]
    expect(
        ">=" in bounds or "~=" in bounds or ">" in bounds,
        f"it requires llmopt{bounds}, without a lower bound.",
    )
    expect("<" in bounds or "~=" in bounds, f"it requires llmopt{bounds}, without an upper bound.")


@check("typed")
def _typed(subject: Subject) -> None:
    """A package has a file py.typed, so that type checkers read its annotations."""
    folder = subject.sources.folder
    if folder is None:
        raise NotApplicable("a single module cannot have one")
    expect((folder / "py.typed").is_file(), f"there is no {folder.name}/py.typed.")


def _imports(subject: Subject) -> Iterator[tuple[str, str, str]]:
    """Module, name ("" for a whole module) and place of everything that the plugin imports."""
    if not subject.sources.files:
        raise NotApplicable("its source is not at hand")
    for path in subject.sources.files:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            place = f"{path.name}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import):
                yield from ((alias.name, "", place) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                yield from ((node.module or "", alias.name, place) for alias in node.names)


@check("public-names")
def _public_names(subject: Subject) -> None:
    """From llmopt itself it imports public names only, and only such as there are."""
    public = set(dir(llmopt)) | {"testing", "errors"}
    for module, name, place in _imports(subject):
        if module == PROJECT and name:
            expect(name in public, f"{place} imports {name!r} from llmopt, which is no public name.")


@check("public-modules")
def _public_modules(subject: Subject) -> None:
    """Of llmopt's modules it names only those that are public: compatible, errors, values.*, testing."""
    for module, name, place in _imports(subject):
        if module.startswith(f"{PROJECT}."):
            open_to_all = any(module == each or module.startswith(f"{each}.") for each in _OPEN)
            private = any(part.startswith("_") for part in (*module.split("."), name))
            expect(
                open_to_all and not private,
                f"{place} imports {module} {name}".rstrip() + ", which is not public.",
            )
            expect(find_spec(module), f"{place} imports {module}, which there is not.")


@check("no-pluggy")
def _no_pluggy(subject: Subject) -> None:
    """It takes hookimpl from llmopt, and does not import pluggy."""
    for module, _, place in _imports(subject):
        expect(module.partition(".")[0] != "pluggy", f"{place} imports pluggy.")
