"""Rules that say what an error means: a table of codes and words, and the one function that applies it.

A plugin gives its provider's rules as a table (`Rule`), and `first_rule` finds the one that applies to an error. The
rules that hold for every provider are in ``errors.toml``; `read_rules` reads such rows.

No I/O and no clock. A regular expression is compiled when an error first needs it, and kept in a module-level cache.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import chain
from types import MappingProxyType
from typing import Any, Final, Literal

from attrs import frozen

from llmopt.values.calls import BatchLimit, Dimension
from llmopt.values.http import Failure, VerdictKind, VerdictScope

_MAX_WORDS: Final = 300
"""Characters of a message that rules look at: what comes later is more often a quotation than the reason."""
_MAX_DIGITS: Final = 12
"""A longer number is no limit, and Python refuses to read very long ones."""
_SERVER_ERRORS: Final = range(500, 600)
LimitName = Literal["max_items", "max_item_tokens", "max_tokens", "max_bytes"]


@frozen
class Rule:
    """One row of a table: an error with one of these codes, or with these words, is of this kind.

    Attributes:
        kind: what the error means.
        codes: regular expression for a whole code, type or reason of the error, in lower case.
        words: regular expression to find in the message, in lower case.
        key: path of a value in the error's object that is there, such as ``"metadata.reasons"``, or that is there with
            this value, such as ``"metadata.cause=budget"``.
        status: the HTTP statuses that the rule holds for; all of them if empty. A rule with a status alone holds for
            every error with it.
        unless: regular expression; with it in the message the rule does not hold.
        limit: the field of `BatchLimit` that the first number among the groups of ``words``, or at ``key``, states.
        number: the limit itself, where the words state it without a number ("only a single input").
        scope: what a `QUOTA_EXHAUSTED` concerns; None to read it from the message.
        exceeded: the limit that a `RATE_LIMITED` is about; None to read it from the codes and the message.
    """

    kind: VerdictKind
    codes: str = ""
    words: str = ""
    key: str = ""
    status: tuple[int, ...] = ()
    unless: str = ""
    limit: LimitName | None = None
    number: int | None = None
    scope: VerdictScope | None = None
    exceeded: Dimension | None = None

    def match(self, failure: Failure, message: str) -> bool:
        """Whether the rule applies to a failure with this message, in lower case."""
        if self.status and failure.stated_status not in self.status:
            return False
        if self.unless and _pattern(self.unless).search(message):
            return False
        if self.codes:
            whole = _pattern(self.codes).fullmatch
            if any(whole(code) for code in failure.error.codes):
                return True
        if self.words and _pattern(self.words).search(message):
            return True
        if self.key:
            path, _, wanted = self.key.partition("=")
            value = _at(failure.error.raw, path)
            return value == wanted if wanted else bool(value)
        return not self.codes and not self.words

    def stated_limit(self, failure: Failure, message: str) -> BatchLimit | None:
        """The limit that a failure states in its message, in lower case, or at ``key``; None if it states none."""
        if self.limit is None:
            return None
        at_key = _at(failure.error.raw, self.key) if self.key else None
        number = (
            self.number or _first_number(self.words, message) or (at_key if type(at_key) is int else None)
        )
        values: dict[str, Any] = {self.limit: number}
        return BatchLimit(**values) if number and number > 0 else None


def read_rules(rows: Iterable[Mapping[str, Any]], names: Mapping[str, str | list[str]]) -> tuple[Rule, ...]:
    """Rules from the rows of a table; the head of ``errors.toml`` describes their keys, and the names."""
    named = {f"<{name}>": _one_of(parts) for name, parts in names.items()}
    return tuple(_rule(row, named) for row in rows)


def _rule(row: Mapping[str, Any], names: Mapping[str, str]) -> Rule:
    expressions = {key: _one_of(row[key], names) for key in ("codes", "words", "unless") if key in row}
    statuses = (_SERVER_ERRORS if each == "5xx" else (each,) for each in row.get("status", ()))
    return Rule(**{**row, **expressions, "kind": VerdictKind(row["kind"]), "status": tuple(chain(*statuses))})


def _one_of(parts: str | list[str], names: Mapping[str, str] = MappingProxyType({})) -> str:
    """One regular expression for several, with the named ones put in."""
    expression = parts if isinstance(parts, str) else "|".join(parts)
    for name, named in names.items():
        expression = expression.replace(name, named)
    return expression


def first_rule(failure: Failure, rules: Iterable[Rule]) -> tuple[Rule, BatchLimit | None] | None:
    """The first rule that applies, and the limit that the message states for it; None if no rule applies."""
    message = rule_text(failure)
    for rule in rules:
        if rule.match(failure, message):
            return rule, rule.stated_limit(failure, message)
    return None


def rule_text(failure: Failure) -> str:
    """The part of the message that rules are compared with."""
    return failure.error.message[:_MAX_WORDS].lower()


def _at(value: object, path: str) -> object:
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _first_number(words: str, message: str) -> int | None:
    match = _pattern(words).search(message) if words else None
    digits = next((group for group in match.groups() if group), "") if match is not None else ""
    digits = digits.replace(",", "")
    return int(digits) or None if digits.isdecimal() and len(digits) <= _MAX_DIGITS else None


@cache
def _pattern(expression: str) -> re.Pattern[str]:
    # Compiled when the first error needs it: a client that meets none should not pay for it.
    return re.compile(expression, re.DOTALL)
