"""Calls that do something besides computing: by function of C, and by audit event."""

from __future__ import annotations

from typing import Any, Final, Literal, TypeAlias

Sin: TypeAlias = Literal[
    "network", "files", "processes", "threads", "sleep", "clock", "randomness", "environment", "output"
]

_BY_NAME: Final[dict[tuple[str, str], Sin]] = {
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

_EVENTS: Final[tuple[tuple[str, Sin], ...]] = (
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


def sin_of_event(event: str) -> Sin | None:
    """What an audit event is the sign of, None for nothing."""
    return next((sin for beginning, sin in _EVENTS if _begins(event, beginning)), None)


def _begins(event: str, beginning: str) -> bool:
    return event.startswith(beginning) if beginning.endswith(".") else event == beginning


def sin_of_call(function: Any) -> Sin | None:
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
