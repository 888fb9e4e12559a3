"""What it costs to import a package and to make a client: fresh processes, taking turns."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.speed.contenders import Contender
from benchmarks.speed.environments import CHECKOUT, Environments
from benchmarks.speed.processes import environment_of

Row = dict[str, Any]


def run_start(contenders: Sequence[Contender], environments: Environments, rounds: int) -> list[Row]:
    """The rows of the case: of each process, and of a bare Python in the same environment right before it."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        most = max((each.plugins for each in contenders), default=0)
        _install_plugins(Path(folder), most)
        for contender in contenders:
            row: Row = {"contender": contender.name, "title": contender.title, "rounds": []}
            rows.append(row)
            row["missing"] = environments.failure(contender.environment) or _once(
                contender, environments, folder, row=None
            )
            if row["missing"] is None:
                del row["missing"]
            else:
                print(f"  {contender.title}: not run: {row['missing']}", flush=True)
        for _ in range(rounds):
            for contender, row in zip(contenders, rows, strict=True):
                if "missing" not in row:
                    _once(contender, environments, folder, row)
    return rows


def _once(contender: Contender, environments: Environments, folder: str, row: Row | None) -> str | None:
    """Both processes; why it cannot be, None if it can. Without a row only that is asked."""
    python = environments.python(contender.environment)
    folders = (folder,) if contender.plugins else ()
    environment = environment_of(checkout=contender.environment == CHECKOUT, folders=folders)
    bare = _process([python, "-c", "pass"], environment)
    full = _process([python, "-c", contender.program or "pass"], environment)
    if full.get("missing"):
        return str(full["missing"])
    if row is not None:
        row["peak"] = max(row.get("peak", 0), full["peak"])
        row["rounds"].append({**full, "bare_cpu": bare["cpu"], "bare_wall": bare["wall"]})
    return None


def _process(command: Sequence[str], environment: dict[str, str]) -> dict[str, Any]:
    with tempfile.TemporaryFile() as errors:
        started = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stderr=errors, cwd=tempfile.gettempdir())
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            return {"missing": errors.read().decode(errors="replace").strip().splitlines()[-1][:200]}
    return {"cpu": usage.ru_utime + usage.ru_stime, "wall": wall, "peak": usage.ru_maxrss * 1024}


def _install_plugins(folder: Path, count: int) -> None:
    """Plugins as pip leaves them, which nobody asks for."""
    for number in range(count):
        name = f"unused_{number:02d}"
        (folder / f"{name}.py").write_text("raise RuntimeError('nobody asked for this')\n")
        data = folder / f"{name}-1.0.dist-info"
        data.mkdir()
        (data / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (data / "entry_points.txt").write_text(f"[llmopt]\nunused{number:02d} = {name}\n")
