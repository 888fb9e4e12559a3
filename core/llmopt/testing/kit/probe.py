"""Run in a fresh interpreter: import a plugin's module and tell, as JSON, what came with it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from importlib import import_module
from typing import Any, Final

_CODE: Final = "import sys; sys.path[:] = {path!r}; from llmopt.testing.kit.probe import main; main({module!r}, {files!r})"
_PUBLIC: Final = (
    "errors",
    "values.calls",
    "values.verdict",
    "values.settings",
    "values.catalog",
    "hookspecs",
)


def probe(module: str, files: list[str]) -> dict[str, Any]:
    """Import a module in a new interpreter.

    Args:
        module: its name.
        files: the plugin's files.

    Returns:
        "error" if it does not import; else "acts" (kind, function, place), "modules" that came new,
        and the names of "threads" started.
    """
    code = _CODE.format(path=sys.path, module=module, files=files)
    done = subprocess.run(  # noqa: S603 - the interpreter that runs already
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode:
        return {"error": done.stderr.strip().rpartition("\n")[2] or f"exit code {done.returncode}"}
    found: dict[str, Any] = json.loads(done.stdout.rpartition("\n")[2])
    return {**found, "printed": done.stdout.rpartition("\n")[0] + done.stderr}


def main(module: str, files: list[str]) -> None:
    """Tell about one import; the last line of what is printed is the answer."""
    import llmopt.compatible
    from llmopt.testing.kit.guard import Watch
    from llmopt.testing.kit.sources import Sources

    for name in _PUBLIC:
        import_module(f"llmopt.{name}")
    _ = llmopt.compatible
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
