"""Error responses in the OpenAI-compatible dialect: what each means, as a `Verdict`.

The rules of the plugin come first, then those of ``errors.toml``, which hold for every provider: money, content filters,
keys, models, sizes, load. They look at codes and at words. Then the HTTP status decides; for an error under a 2xx status
that states no other, its type or code does.

The module reads ``errors.toml`` when it is imported, and not at the first error: a process without a free descriptor
could not. Beyond that no I/O, no clock, no state. `classify` is the default of the hook `classify_error`. It reads a wait
from the body only; headers are read by the engine.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from llmopt.compatible.refusals import body_wait, exceeded_limit
from llmopt.compatible.rules import Rule, first_rule, read_rules, rule_text
from llmopt.hookspecs import hookimpl
from llmopt.values.calls import Dimension
from llmopt.values.http import Failure, Verdict, VerdictKind, VerdictScope

_K = VerdictKind
_TABLE: Final = tomllib.loads(Path(__file__).with_name("errors.toml").read_text("utf-8"))
RULES: Final = read_rules(_TABLE["rule"], _TABLE["names"])
"""The rules that hold for every provider, in order."""
_STREAM_RULES: Final = read_rules(_TABLE["stream_rule"], _TABLE["names"])
_BY_STATUS: Final = {int(status): VerdictKind(kind) for status, kind in _TABLE["by_status"].items()}
_BY_TYPE: Final = {name: VerdictKind(kind) for name, kind in _TABLE["by_type"].items()}
_ONE_REQUEST: Final = ("can only afford", "fewer max_tokens", "tokens limit exceeded")
_WAITS: Final = frozenset({_K.RATE_LIMITED, _K.OVERLOADED, _K.TRANSIENT})


@hookimpl(trylast=True, specname="classify_error")
def classify(failure: Failure, *, rules: Iterable[Rule] = ()) -> Verdict:
    """Classify an error: by the rules of a plugin, by those of every provider, by its status.

    Args:
        failure: the error.
        rules: the plugin's own; the first one that applies decides.
    """
    error = failure.error
    match = first_rule(failure, (*rules, *RULES))
    rule = match[0] if match is not None else None
    kind = rule.kind if rule is not None else _kind_without_rule(failure)
    return Verdict(
        kind=kind,
        code=error.code or error.type,
        message=error.message,
        param=error.param,
        limit=match[1] if match is not None else None,
        retry_after=body_wait(failure) if kind in _WAITS else None,
        scope=(rule.scope if rule is not None else None) or _scope(kind, failure),
        exceeded=_exceeded(kind, rule, failure),
    )


def _exceeded(kind: VerdictKind, rule: Rule | None, failure: Failure) -> Dimension | None:
    if kind is not _K.RATE_LIMITED:
        return None
    return (rule.exceeded if rule is not None else None) or exceeded_limit(failure)


def _scope(kind: VerdictKind, failure: Failure) -> VerdictScope:
    """What an exhausted quota shuts out: one request, one model, or everything that the credential pays for."""
    if kind is not _K.QUOTA_EXHAUSTED:
        return "account"
    message = rule_text(failure)
    if any(words in message for words in _ONE_REQUEST):
        return "request"
    per_model = "model" in message or any("permodel" in code for code in failure.error.codes)
    return "model" if per_model else "account"


def _kind_without_rule(failure: Failure) -> VerdictKind:
    # OpenRouter and streams send errors with status 200, which says nothing about them.
    if not 200 <= failure.stated_status < 300:
        return _kind_by_status(failure.stated_status)
    kind = next((_BY_TYPE[code] for code in failure.error.codes if code in _BY_TYPE), None)
    if kind is None and (match := first_rule(failure, _STREAM_RULES)) is not None:
        kind = match[0].kind
    if kind is None and failure.operation == "chat":
        # An unexplained error in a stream or in place of a reply is usually temporary.
        return _K.TRANSIENT
    return kind or _K.INVALID_RESPONSE


def _kind_by_status(status: int) -> VerdictKind:
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if 400 <= status < 500:
        return _K.BAD_REQUEST
    if 500 <= status < 600:
        return _K.TRANSIENT
    return _K.UNEXPECTED
