"""Record side effects of hook calls with profiling and audit hooks."""

from __future__ import annotations

import gc
import inspect
import json
import os
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from functools import cached_property
from importlib import import_module
from pathlib import Path
from threading import get_ident
from types import CodeType, FrameType, ModuleType
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, TypeVar

import attrs
from attrs import evolve, frozen

import llmopt
from llmopt import hookimpl
from llmopt.errors import LLMOptError
from llmopt.values.http import Failure, HttpRequest, HttpResponse
from llmopt.values.secret import Secret

if TYPE_CHECKING:
    from importlib_metadata import EntryPoint

SideEffect: TypeAlias = Literal[
    "network", "files", "processes", "threads", "sleep", "clock", "randomness", "environment", "output"
]
_BY_NAME: Final[dict[tuple[str, str], SideEffect]] = {
    ("time", "sleep"): "sleep",
    **{
        ("time", name): "clock"
        for name in (
            "time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns",
            "process_time", "thread_time", "clock_gettime", "localtime", "gmtime",
        )
    },
    **{("_random", name): "randomness" for name in ("random", "getrandbits", "seed")},
    **{
        ("posix", name): "files"
        for name in (
            "open", "stat", "lstat", "access", "listdir", "scandir", "mkdir", "remove", "unlink", "rename",
            "replace", "rmdir", "readlink", "read", "write", "getcwd",
        )
    },
    ("posix", "urandom"): "randomness",
    ("posix", "getrandom"): "randomness",
    ("io", "open"): "files",
    ("_io", "open"): "files",
    ("builtins", "print"): "output",
    ("builtins", "input"): "output",
    ("_thread", "start_new_thread"): "threads",
    ("_thread", "start_joinable_thread"): "threads",
    ("_posixsubprocess", "fork_exec"): "processes",
    **{("posix", name): "processes" for name in ("fork", "system", "posix_spawn", "execv", "execve", "kill")},
}  # fmt: skip
"""Functions in C by the module they belong to."""
_EVENTS: Final[tuple[tuple[str, SideEffect], ...]] = (
    ("socket.", "network"),
    ("open", "files"),
    ("os.listdir", "files"),
    ("os.scandir", "files"),
    ("os.mkdir", "files"),
    ("os.remove", "files"),
    ("os.rename", "files"),
    ("shutil.", "files"),
    ("sqlite3.connect", "files"),
    ("subprocess.", "processes"),
    ("os.system", "processes"),
    ("os.exec", "processes"),
    ("os.fork", "processes"),
    ("os.posix_spawn", "processes"),
    ("_thread.start_new_thread", "threads"),
    ("time.sleep", "sleep"),
    ("urllib.Request", "network"),
    ("http.client.connect", "network"),
)
"""Audit events by their beginnings."""
_NOW: Final = frozenset({"now", "today", "utcnow"})


def side_effect_of_event(event: str) -> SideEffect | None:
    """What an audit event is the sign of, None for nothing."""
    return next((sin for beginning, sin in _EVENTS if _begins(event, beginning)), None)


def _begins(event: str, beginning: str) -> bool:
    return event.startswith(beginning) if beginning.endswith(".") else event == beginning


def side_effect_of_call(function: Any) -> SideEffect | None:
    """What calling a function written in C does besides computing, None for nothing."""
    name = getattr(function, "__name__", "")
    owner = getattr(function, "__self__", None)
    module = getattr(function, "__module__", None) or getattr(type(owner), "__module__", "")
    if name in _NOW and isinstance(owner, type) and getattr(owner, "__module__", "") == "datetime":
        return "clock"
    if name in {"random", "getrandbits", "seed"} and type(owner).__module__ == "random":
        return "randomness"
    if module == "_socket" or type(owner).__module__ in {"_socket", "socket"}:
        return "network"
    return _BY_NAME.get((str(module), name))


def name_of_call(function: Any) -> str:
    """A function of C as people know it."""
    owner = getattr(function, "__self__", None)
    name = str(getattr(function, "__qualname__", function))
    module = str(getattr(owner, "__name__", "") if owner is not None else function.__module__)
    module = {"posix": "os", "builtins": ""}.get(module, module.lstrip("_"))
    return f"{module}.{name}()" if module and "." not in name else f"{name}()"


# Where a plugin's code is, and what it is called.

PACKAGE: Final = llmopt.__name__
_PREFIX: Final = f"{PACKAGE}_plugin_"
CORE: Final = str(Path(llmopt.__file__).parent)
"""The folder of the core."""
STANDARD: Final = sysconfig.get_path("stdlib")
"""The folder of the standard library."""


class Sources:
    """The files and the metadata of a plugin.

    Args:
        plugin: its module, or any object with its hooks.
    """

    def __init__(self, plugin: object) -> None:
        self._plugin: Final = plugin

    @cached_property
    def module_name(self) -> str:
        """Name of the module, or of the object's class."""
        plugin = self._plugin
        return plugin.__name__ if isinstance(plugin, ModuleType) else type(plugin).__qualname__

    @cached_property
    def provider_name(self) -> str:
        """Key of the entry point, else what follows ``llmopt_plugin_`` in the module's name."""
        if self.entry_point is not None:
            return self.entry_point.name
        return self.module_name.rpartition(".")[2].removeprefix(_PREFIX).replace("_", "-").lower()

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """All Python files: of the package, or the module's one, or where the hooks are written."""
        if not isinstance(self._plugin, ModuleType):
            return self._files_of_hooks()
        path = getattr(self._plugin, "__file__", None)
        if path is None:
            return ()
        if hasattr(self._plugin, "__path__"):
            return tuple(sorted(Path(path).parent.rglob("*.py")))
        return (Path(path),)

    def _files_of_hooks(self) -> tuple[Path, ...]:
        found = (inspect.unwrap(value) for _, value in inspect.getmembers(self._plugin, callable))
        codes = (getattr(value, "__code__", None) for value in found)
        return tuple(sorted({Path(code.co_filename) for code in codes if code is not None}))

    @cached_property
    def folder(self) -> Path | None:
        """Folder of the package, None for a single file."""
        if isinstance(self._plugin, ModuleType) and hasattr(self._plugin, "__path__") and self.files:
            return Path(str(self._plugin.__file__)).parent
        return None

    def owns(self, filename: str) -> bool:
        """Whether code of this file is the plugin's."""
        if self.folder is not None and filename.startswith(f"{self.folder}/"):
            return True
        return filename in {str(path) for path in self.files}

    def shown(self, filename: str) -> str:
        """A file's name as its author knows it."""
        root = self.folder.parent if self.folder is not None else Path(filename).parent
        return filename.removeprefix(f"{root}/")

    @cached_property
    def entry_point(self) -> EntryPoint | None:
        """The entry point that names the module, None when it is not installed."""
        if not isinstance(self._plugin, ModuleType):
            return None
        # Imported here: the fresh interpreter that watches an import must not have the core loaded beforehand.
        from llmopt.testing.harness import entry_point_of

        return entry_point_of(self.module_name)

    @property
    def distribution(self) -> Any:
        """The installed distribution, None when there is none; its class depends on importlib-metadata's version."""
        return None if self.entry_point is None else self.entry_point.dist


def is_standard(filename: str) -> bool:
    """Whether a file is of the standard library, or of no file at all."""
    if filename.startswith("<"):
        return True
    return filename.startswith(f"{STANDARD}/") and "site-packages" not in filename


def third_party(module: str) -> bool:
    """Whether a module is neither of the standard library nor of the core."""
    return module.partition(".")[0] not in {*sys.stdlib_module_names, PACKAGE}


# Watching a call: what it does besides computing.
#
# Two observers together miss little. The interpreter's profiling hook sees each call of a function
# written in C, by identity, so that ``from time import time`` hides nothing; its audit hook sees files,
# sockets and processes however they are reached.

_T = TypeVar("_T")


@frozen(kw_only=True)
class Act:
    """One thing done besides computing: its kind, the function, and the place in the plugin."""

    sin: SideEffect
    what: str
    place: str


def _environment_codes() -> frozenset[CodeType]:
    kind = type(os.environ)
    names = ("__getitem__", "__iter__", "__len__", "__setitem__", "__delitem__", "copy", "setdefault")
    return frozenset(
        code for name in names if (code := getattr(getattr(kind, name, None), "__code__", None)) is not None
    )


_ENVIRONMENT: Final = _environment_codes()
_watching: list[Watch] = []
_installed: list[Callable[..., None]] = []


class Watch:
    """Notes what calls do.

    Args:
        sources: where the plugin's code is.
    """

    def __init__(self, sources: Sources) -> None:
        self._sources: Final = sources
        self._noting = False
        self.acts: Final[list[Act]] = []
        self.thread = 0
        # Looked up now: to find them is file I/O itself.
        _ = sources.files, sources.folder

    def call(self, function: Callable[..., _T], *args: Any, **values: Any) -> _T:
        """Call a function under observation."""
        self.thread = get_ident()
        before = sys.getprofile()
        collecting = gc.isenabled()
        # What a collection tidies up meanwhile is nobody's act here.
        gc.disable()
        _watching.append(self)
        _audit_once()
        sys.setprofile(self._profile)
        try:
            return function(*args, **values)
        finally:
            sys.setprofile(before)
            _watching.remove(self)
            if collecting:
                gc.enable()

    def _profile(self, frame: FrameType, event: str, arg: Any) -> None:
        if event == "c_call":
            sin = side_effect_of_call(arg)
            if sin is not None:
                self.note(sin, name_of_call(arg), frame)
        elif event == "call" and frame.f_code in _ENVIRONMENT:
            self.note("environment", "os.environ", frame.f_back)

    def note(self, sin: SideEffect, what: str, frame: FrameType | None) -> None:
        """Write down what the code of a frame did."""
        if self._noting:
            return
        self._noting = True
        try:
            self._add(sin, what, self._place(frame))
        finally:
            self._noting = False

    def _add(self, sin: SideEffect, what: str, place: str | None) -> None:
        if place is not None and not any(act.sin == sin and act.place == place for act in self.acts):
            self.acts.append(Act(sin=sin, what=what, place=place))

    def _place(self, frame: FrameType | None) -> str | None:
        """Where the plugin did it; None when it was the core, an import, or nothing of the call's."""
        if frame is None or _trusted(frame.f_code.co_filename):
            return None
        innermost = frame
        while frame.f_code is not Watch.call.__code__:
            name = frame.f_code.co_filename
            if self._sources.owns(name):
                return f"{self._sources.shown(name)}:{frame.f_lineno}"
            if name.startswith("<frozen importlib"):
                return None
            if frame.f_back is None:
                return None
            frame = frame.f_back
        name = innermost.f_code.co_filename
        return None if is_standard(name) else f"{name}:{innermost.f_lineno}"


def _trusted(name: str) -> bool:
    # The core's own values may look at the clock when they are made; what attrs writes for them too.
    return name.startswith((f"{CORE}/", "<attrs generated")) and f"{CORE}/testing/" not in name


def _audit_once() -> None:
    # An audit hook cannot be taken out again, so there is one for the process, idle outside of a watch.
    if not _installed:
        _installed.append(_audit)
        sys.addaudithook(_audit)


def _audit(event: str, _: tuple[object, ...]) -> None:
    # What other threads do meanwhile is not the call's.
    if not _watching or _watching[-1].thread != get_ident():
        return
    sin = side_effect_of_event(event)
    if sin is not None:
        _watching[-1].note(sin, event, sys._getframe(1))  # noqa: SLF001 - the documented way to a frame


# Comparing whatever hooks take and give: values, arrays, errors, functions.

_PLAIN = (str, bytes, int, float, bool, type(None), Secret, type)


def fingerprint(value: Any) -> Any:
    """A plain value that is equal for equal values, whatever they are made of.

    Of what a hook may return but nobody can compare, a function or a transport, only the type counts.
    """
    if isinstance(value, _PLAIN):
        return repr(value) if isinstance(value, float) else value
    if isinstance(value, BaseException):
        return type(value).__name__, str(value)
    if attrs.has(type(value)):
        return _of_fields(value)
    if isinstance(value, Mapping):
        return [(fingerprint(key), fingerprint(inner)) for key, inner in value.items()]
    return _of_collection(value)


def _of_collection(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [fingerprint(inner) for inner in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, value))
    if hasattr(value, "dtype") and hasattr(value, "tobytes"):
        return str(value.dtype), tuple(value.shape), value.tobytes()
    return type(value).__qualname__


def _of_fields(value: Any) -> Any:
    found = {
        each.name: fingerprint(getattr(value, each.name))
        for each in attrs.fields(type(value))
        if each.name != "received"
    }
    # What they have worked out once is theirs as well, and must stay as it is.
    if isinstance(value, HttpResponse) and "json" in vars(value):
        found["json"] = fingerprint(value.json)
    if isinstance(value, Failure) and "error" in vars(value):
        found["error"] = fingerprint(value.error)
    return type(value).__name__, found


def work_out(value: Any) -> Any:
    """Make a value work out what it would work out when first asked."""
    if isinstance(value, Failure):
        _ = value.error
    elif isinstance(value, HttpResponse):
        # Some answers are no JSON on purpose.
        with suppress(LLMOptError):
            _ = value.json
    return value


def mutate(value: Any) -> bool:
    """Change what can be changed in a result; whether there was anything."""
    changed = False
    if isinstance(value, HttpRequest):
        for part in (value.headers, value.json):
            if isinstance(part, dict):
                part["x-kit-mutate"] = "added by the kit"
                changed = True
    vectors = getattr(value, "vectors", None)
    if vectors is not None and vectors.flags.writeable:
        vectors.fill(0)
        changed = True
    return changed


# A wrapper plugin as a user might write one.

ADDED: Final = {"x-kit-wrapper": "was here"}


class HeaderWrapper:
    """Adds a header to every request."""

    @hookimpl(wrapper=True)
    def build_request(self) -> Generator[None, HttpRequest, HttpRequest]:
        """The plugin's request with one header more."""
        request = yield
        return evolve(request, headers={**request.headers, **ADDED})


# What importing a plugin brings in, found out in a fresh interpreter.

_CODE: Final = "import sys; sys.path[:] = {path!r}; from llmopt_conformance.observe import main; main({module!r}, {files!r})"


def import_in_fresh_interpreter(module: str, files: list[str]) -> dict[str, Any]:
    """Import a module in a new interpreter.

    Args:
        module: its name.
        files: the plugin's files.

    Returns:
        "error" if it does not import; else "acts" (kind, function, place), "modules" that were not loaded
        before, the names of "threads" started, and what was "printed".
    """
    code = _CODE.format(path=sys.path, module=module, files=files)
    done = subprocess.run(  # noqa: S603 - the interpreter that runs already
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode:
        return {"error": done.stderr.strip().rpartition("\n")[2] or f"exit code {done.returncode}"}
    found: dict[str, Any] = json.loads(done.stdout.rpartition("\n")[2])
    return {**found, "printed": done.stdout.rpartition("\n")[0] + done.stderr}


def import_public_modules() -> None:
    """Load what every plugin may import, so that it does not count as brought in by one of them.

    Nothing else of the core may be loaded by this file: it would hide that a plugin imports it.
    """
    for name in ("compatible", "errors", "values.calls", "values.http", "values.catalog"):
        import_module(f"llmopt.{name}")


def main(module: str, files: list[str]) -> None:
    """Import a module and print, as the last line, what came of it as JSON."""
    import_public_modules()
    sources = Sources(None)
    sources.__dict__["files"] = tuple(files)
    watch = Watch(sources)
    before, running = set(sys.modules), set(threading.enumerate())
    watch.call(import_module, module)
    found = {
        "acts": [(act.sin, act.what, act.place) for act in watch.acts],
        "modules": sorted(set(sys.modules) - before),
        "threads": [each.name for each in threading.enumerate() if each not in running],
    }
    sys.stdout.write("\n" + json.dumps(found))
