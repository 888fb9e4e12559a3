"""The bill of materials of a release, and the licences in it.

The bill is CycloneDX 1.6, made by cyclonedx-bom from an environment with every plugin and nothing else. Starts processes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

ACCEPTED: Final = frozenset(
    {
        "0BSD",
        "Apache-2.0",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "CC0-1.0",
        "ISC",
        "MIT",
        "MIT-0",
        "MPL-2.0",
        "PSF-2.0",
        "Python-2.0",
        "Unlicense",
        "Zlib",
    }
)
"""Licences that do not bind the application that installs llmopt. A new one is decided on by a person."""
_CLASSIFIERS: Final = {
    "License :: OSI Approved :: Apache Software License": "Apache-2.0",
    "License :: OSI Approved :: MIT License": "MIT",
    "License :: OSI Approved :: Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
}
"""Classifiers that name one licence; "BSD License" is several."""
_READ_BY_HAND: Final = {"pysimdjson": "MIT AND Apache-2.0"}
"""Packages whose metadata names no licence, and the one that their licence file has."""


def write_sbom(python: Path, project: Path, target: Path) -> dict[str, Any]:
    """Write the bill of what is installed for an interpreter, and return it.

    Args:
        python: the interpreter of the environment.
        project: the ``pyproject.toml`` of the component that the bill is about.
        target: the file; it is the same for the same packages.
    """
    command = [
        sys.executable,
        "-m",
        "cyclonedx_py",
        "environment",
        "--pyproject",
        str(project),
        "--mc-type",
        "library",
    ]
    options = ["--spec-version", "1.6", "--output-reproducible", "--output-file", str(target)]
    subprocess.run([*command, *options, str(python)], check=True)
    bill: dict[str, Any] = json.loads(target.read_text("utf-8"))
    return bill


def licences(bill: Mapping[str, Any]) -> dict[str, list[str]]:
    """The licences of each component, as SPDX names or as its authors wrote them."""
    found = {component["name"]: set(_names(component)) for component in bill["components"]}
    return {name: sorted(names) or [_READ_BY_HAND.get(name, "unknown")] for name, names in found.items()}


def _names(component: Mapping[str, Any]) -> Iterator[str]:
    for entry in component.get("licenses", ()):
        if "expression" in entry:
            yield entry["expression"]
        else:
            name = entry["license"].get("id") or entry["license"].get("name", "")
            yield _CLASSIFIERS.get(name, name)


def licence_problems(found: Mapping[str, list[str]]) -> list[str]:
    """Components without a licence that is accepted."""
    return [
        f"{name} has the licence {', '.join(names)}"
        for name, names in sorted(found.items())
        if not any(map(_accepted, names))
    ]


def _accepted(expression: str) -> bool:
    """Whether one alternative of an SPDX expression without brackets has accepted licences alone."""
    words = expression.replace("(", "").replace(")", "")
    return any(
        all(part.strip() in ACCEPTED for part in choice.split(" AND ")) for choice in words.split(" OR ")
    )
