"""Error corpus: recorded provider errors, each with the verdict that ``classify_error`` must return (TOML).

The format is that of docs/development/error-corpus.md. In the kit's own file an error has a ``check`` beside, the
check that it belongs to; ``kind`` may be a list there, of which any is right, and what is left out is left
open.

`corpus_of` and `own_corpus` read a file, each time; everything else is pure.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from attrs import field, frozen

from llmopt.values.calls import BatchLimit, Dimension, Operation
from llmopt.values.http import Failure, Verdict, VerdictKind
from llmopt.values.secret import repr_size

FILE: Final = "errors.toml"
"""The name of a plugin's corpus, in its package."""

_KEYS: Final = frozenset(
    {
        "name",
        "source",
        "operation",
        "status",
        "headers",
        "body",
        "kind",
        "retry_after",
        "exceeded",
        "limit",
        "item",
        "check",
    }
)
_REQUIRED: Final = frozenset({"name", "source", "status", "body", "kind"})
_LIMITS: Final = frozenset({"max_items", "max_item_tokens", "max_tokens", "max_bytes"})


class CorpusError(ValueError):
    """A corpus cannot be read; the text says which entry is wrong, and why."""


@frozen(kw_only=True)
class KnownError:
    """An error and its verdict.

    Attributes:
        name: unique in its file.
        source: where it was observed.
        operation: "embeddings", "catalog" or "chat".
        status: HTTP status.
        headers: names in lower case.
        body: the bytes.
        kinds: the correct verdicts; exactly one in a plugin's own corpus.
        retry_after: the verdict's ``retry_after``, in seconds.
        exceeded: the verdict's ``exceeded``.
        limit: the verdict's ``limit``.
        item: the verdict's ``item``.
        check: the check of the conformance kit that it belongs to, "" in a plugin's own corpus.
    """

    name: str
    source: str
    operation: Operation = "embeddings"
    status: int
    headers: Mapping[str, str] = field(factory=dict, repr=False)
    body: bytes = field(repr=repr_size)
    kinds: frozenset[VerdictKind]
    retry_after: float | None = None
    exceeded: Dimension | None = None
    limit: BatchLimit | None = None
    item: int | None = None
    check: str = ""

    @property
    def failure(self) -> Failure:
        """The argument of ``classify_error`` for this error."""
        return Failure(
            status=self.status,
            headers=dict(self.headers),
            # As much as the core passes on of a real error.
            body=self.body[:65536],
            operation=self.operation,
            model="kit-model",
        )

    def faults(self, verdict: Verdict) -> list[str]:
        """One sentence for each thing that is wrong with a verdict."""
        problems = []
        if verdict.kind not in self.kinds:
            wanted = " or ".join(sorted(kind.name for kind in self.kinds))
            problems.append(
                f"{self.name} (HTTP {self.status}): the verdict is {verdict.kind.name}, not {wanted}."
            )
        for name in ("retry_after", "exceeded", "limit", "item"):
            wanted, actual = getattr(self, name), getattr(verdict, name)
            left_open = wanted is None and (self.check or name == "exceeded")
            if actual != wanted and not left_open:
                problems.append(f"{self.name} (HTTP {self.status}): {name} is {actual}, not {wanted}.")
        return problems


def read_corpus(text: str) -> tuple[KnownError, ...]:
    """The errors of a corpus.

    Raises:
        CorpusError: the text is not a corpus, or an entry is wrong.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CorpusError(f"not valid TOML: {error}") from None
    entries = table.get("error", [])
    if not isinstance(entries, list) or set(table) - {"error"}:
        raise CorpusError("a corpus holds [[error]] tables and nothing else.")
    errors = tuple(_known(entry, number) for number, entry in enumerate(entries))
    names = [each.name for each in errors]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise CorpusError(f"names occur twice: {', '.join(twice)}.")
    return errors


def corpus_of(folder: Path) -> tuple[KnownError, ...]:
    """The corpus in a plugin's package; empty if it has none."""
    path = folder / FILE
    return read_corpus(path.read_text("utf-8")) if path.is_file() else ()


def own_corpus() -> tuple[KnownError, ...]:
    """The corpus of the conformance kit: errors that every plugin must classify correctly."""
    return read_corpus((Path(__file__).parent / "corpus.toml").read_text("utf-8"))


def _known(entry: Mapping[str, Any], number: int) -> KnownError:
    where = f"error {number} ({entry.get('name', 'without a name')})"
    unknown, missing = sorted(set(entry) - _KEYS), sorted(_REQUIRED - set(entry))
    if unknown or missing:
        raise CorpusError(f"{where}: unknown {unknown}, missing {missing}.")
    values = {key: _READERS.get(key, _same)(value, where) for key, value in entry.items()}
    return KnownError(kinds=values.pop("kind"), **values)


def _same(value: Any, _: str) -> Any:
    return value


def _body(value: Any, where: str) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, list) and all(type(byte) is int and 0 <= byte < 256 for byte in value):
        return bytes(value)
    raise CorpusError(f"{where}: body is text, or a list of bytes.")


def _kinds(value: Any, where: str) -> frozenset[VerdictKind]:
    names = value if isinstance(value, list) else [value]
    try:
        return frozenset(VerdictKind(str(name).lower()) for name in names)
    except ValueError as error:
        kinds = ", ".join(kind.value for kind in VerdictKind)
        raise CorpusError(f"{where}: {error}; the kinds are {kinds}.") from None


def _limit(value: Any, where: str) -> BatchLimit:
    if not isinstance(value, dict) or set(value) - _LIMITS:
        raise CorpusError(f"{where}: limit is a table of {', '.join(sorted(_LIMITS))}.")
    return BatchLimit(**value)


def _headers(value: Any, where: str) -> dict[str, str]:
    if not isinstance(value, dict) or any(name != name.lower() for name in value):
        raise CorpusError(f"{where}: headers is a table of text, with names in lower case.")
    return {name: str(text) for name, text in value.items()}


_READERS: Final[Mapping[str, Callable[[Any, str], Any]]] = {
    "body": _body,
    "kind": _kinds,
    "limit": _limit,
    "headers": _headers,
}
