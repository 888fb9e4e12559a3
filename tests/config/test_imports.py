"""Reading a configuration costs what it needs and no more."""

import re
import subprocess
import sys
from pathlib import Path

import llmopt.config.resolve

SLOW = (
    "aiohttp",
    "asyncio",
    "cattrs",
    "difflib",
    "httpx",
    "idna",
    "msgspec",
    "numpy",
    "platformdirs",
    "tomllib",
)
FOLDER = Path(llmopt.config.resolve.__file__).parent


def imported(code: str) -> set[str]:
    """Which of the slow modules a fresh interpreter has imported after this code."""
    core = str(FOLDER.parents[1])
    code = f"import sys; sys.path.insert(0, {core!r}); {code}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split()) & set(SLOW)


def test_importing_the_package_imports_nothing_slow() -> None:
    """Everything slow waits until it is needed."""
    modules = ", ".join(f"llmopt.config.{path.stem}" for path in FOLDER.glob("[a-z]*.py"))
    assert imported(f"import {modules}") == set()


def test_the_core_knows_no_provider_by_name() -> None:
    """Providers are plugins."""
    for path in FOLDER.glob("*.py"):
        assert not re.search("openai|azure|mistral", path.read_text(encoding="utf-8"), re.IGNORECASE), path
