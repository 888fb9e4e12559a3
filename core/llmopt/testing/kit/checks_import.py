"""Importing the plugin costs little and does nothing."""

from __future__ import annotations

from typing import Any, Final

from llmopt.testing.kit.check import CheckFailed, Family, NotApplicable, expect
from llmopt.testing.kit.probe import probe
from llmopt.testing.kit.sources import third_party
from llmopt.testing.kit.subject import Subject

check: Final = Family("import")

_LIGHT: Final = frozenset({"attr", "attrs", "msgspec", "typing_extensions"})
_HEAVY_STANDARD: Final = frozenset(
    {"asyncio", "concurrent", "http", "multiprocessing", "sqlite3", "unittest"}
)


def _found(subject: Subject) -> dict[str, Any]:
    """What importing the module in a fresh interpreter comes to; done once."""
    if "import" not in subject.findings:
        files = [str(path) for path in subject.sources.files]
        subject.findings["import"] = probe(subject.module.__name__, files)
    found: dict[str, Any] = subject.findings["import"]
    return found


def _imported(subject: Subject) -> dict[str, Any]:
    if "error" in _found(subject):
        raise NotApplicable("it does not import; see import.works")
    return _found(subject)


@check("works")
def _works(subject: Subject) -> None:
    """The module imports in a fresh interpreter, on its own."""
    error = _found(subject).get("error")
    if error:
        raise CheckFailed(f"{subject.module.__name__} did not import: {error}")


@check("light")
def _light(subject: Subject) -> None:
    """Importing brings in no further package: what is slow is imported by the function that needs it."""
    own = subject.sources.module_name.partition(".")[0]
    extra = {name.partition(".")[0] for name in _imported(subject)["modules"] if third_party(name)}
    found = sorted(extra - _LIGHT - {own})
    expect(not found, f"it imports {', '.join(found)}.")


@check("light-core")
def _light_core(subject: Subject) -> None:
    """Importing brings in no heavy part of the standard library or of the core."""
    modules = _imported(subject)["modules"]
    standard = {name.partition(".")[0] for name in modules} & _HEAVY_STANDARD
    core = {name for name in modules if name.startswith(("llmopt.wire", "llmopt.engine", "llmopt.client"))}
    expect(not standard | core, f"it imports {', '.join(sorted(standard | core))}.")


def _never(subject: Subject, sins: tuple[str, ...], doing: str) -> None:
    for sin, what, place in _imported(subject)["acts"]:
        expect(sin not in sins, f"importing it {doing}: {what} at {place}.")


@check("no-threads")
def _no_threads(subject: Subject) -> None:
    """Importing starts no thread and no process."""
    _never(subject, ("threads", "processes"), "starts a thread or process")
    threads = _imported(subject)["threads"]
    expect(not threads, f"importing it starts the threads {', '.join(threads)}.")


@check("no-environment")
def _no_environment(subject: Subject) -> None:
    """Importing reads no environment variable: the profile names them, the core reads them."""
    _never(subject, ("environment",), "reads the environment")


@check("no-network")
def _no_network(subject: Subject) -> None:
    """Importing touches no network."""
    _never(subject, ("network",), "touches the network")


@check("no-files")
def _no_files(subject: Subject) -> None:
    """Importing reads no files besides the code itself, waits for nothing and prints nothing."""
    _never(subject, ("files",), "touches files")
    _never(subject, ("sleep",), "sleeps")
    printed = _imported(subject)["printed"].strip()
    expect(not printed, f"importing it prints {printed[:200]!r}.")
