"""Azure's errors: flat bodies from the gateway, nested ones from the model, numbers as codes.

errors.toml in this folder has an example of every known error.
"""

from __future__ import annotations

import re
from typing import Final

from attrs import evolve

from llmopt import BatchLimit, Failure, Settings, Verdict, VerdictKind, compatible
from llmopt_plugin_azure._entra import scope_of

_K: Final = VerdictKind
_MINUTE: Final = re.compile(r"\bLimit:? (\d{1,12})\b")
_RETRY_AFTER: Final = re.compile(r"retry after (\d{1,9}(?:\.\d+)?) (milli)?second", re.IGNORECASE)
_CONTEXT: Final = re.compile(r"maximum context length is (\d{1,12}) tokens", re.IGNORECASE)
_REQUEST_TOKENS: Final = re.compile(r"\bmax (\d{1,12}) tokens per request", re.IGNORECASE)
_ITEMS: Final = re.compile(r"\$\.input.*\b(\d{1,12}) or (?:fewer|less)", re.IGNORECASE)
_FILTERED: Final = "ResponsibleAIPolicyViolation"


def verdict_of(failure: Failure, settings: Settings) -> Verdict:
    """Classify an error of Azure."""
    verdict = compatible.classify(failure)
    judge = _BY_STATUS.get(failure.stated_status)
    return judge(failure, verdict, settings) if judge is not None else verdict


def _bad_request(failure: Failure, verdict: Verdict, _settings: Settings) -> Verdict:
    error = failure.error
    if error.inner_code == _FILTERED:
        return evolve(verdict, kind=_K.CONTENT_FILTERED)
    if most := _number(_REQUEST_TOKENS, error.message):
        return evolve(verdict, kind=_K.BATCH_TOO_LARGE, limit=BatchLimit(max_tokens=most))
    if most := _number(_CONTEXT, error.message):
        return evolve(verdict, kind=_K.ITEM_TOO_LONG, limit=BatchLimit(max_item_tokens=most))
    if most := _number(_ITEMS, error.message):
        return evolve(verdict, kind=_K.BATCH_TOO_LARGE, limit=BatchLimit(max_items=most))
    if error.code == "OperationNotSupported":
        return evolve(verdict, hint="the model behind this deployment does something else; name another one")
    return verdict


def _unauthorized(failure: Failure, verdict: Verdict, settings: Settings) -> Verdict:
    if "audience is incorrect" not in failure.error.message.lower():
        return verdict
    path = f"providers.{settings.provider}"
    if settings.credential_kind == "token" and settings.options.get("auth") != "entra":
        hint = f"the token provider of {path} must ask for the audience of this host, {scope_of(settings)}"
    elif settings.options.get("auth") in ("token", "entra"):
        hint = f"set {path}.token_scope if the audience is wrong; it is {scope_of(settings)} now"
    else:
        hint = f"check the key, or if it is an Entra token set {path}.auth and {path}.token_scope"
    return evolve(verdict, hint=hint)


def _not_found(failure: Failure, verdict: Verdict, settings: Settings) -> Verdict:
    path = f"providers.{settings.provider}"
    if failure.error.code == "DeploymentNotFound":
        hint = (
            "the model must be the name of a deployment; one made in the last five minutes may need a moment"
        )
    elif failure.error.code == "404":
        hint = f"there is no such path: check {path}.base_url, {path}.surface and {path}.api_version"
    else:
        return verdict
    return evolve(verdict, hint=hint)


def _backend(_failure: Failure, verdict: Verdict, _settings: Settings) -> Verdict:
    # Not documented; what stands behind the gateway failed.
    return evolve(verdict, kind=_K.TRANSIENT)


def _too_many(failure: Failure, verdict: Verdict, _settings: Settings) -> Verdict:
    message = failure.error.message
    if verdict.kind is _K.QUOTA_EXHAUSTED:
        return verdict
    if message.lower().startswith("request too large for"):
        # More than a whole minute's tokens: waiting never helps.
        most = _number(_MINUTE, message)
        return evolve(verdict, kind=_K.BATCH_TOO_LARGE, limit=BatchLimit(max_tokens=most) if most else None)
    found = _RETRY_AFTER.search(message)
    wait = float(found[1]) / (1000 if found[2] else 1) if found else None
    kind = _K.OVERLOADED if "high demand" in message.lower() else verdict.kind
    return evolve(verdict, kind=kind, retry_after=wait or None)


def _too_many_headers(_failure: Failure, verdict: Verdict, settings: Settings) -> Verdict:
    return evolve(
        verdict, hint=f"Azure takes ten headers of one's own; see providers.{settings.provider}.headers"
    )


def _number(form: re.Pattern[str], message: str) -> int | None:
    found = form.search(message)
    return (int(found[1]) or None) if found else None


_BY_STATUS: Final = {
    # An error inside a stream comes after a 200 status that was already sent.
    200: _bad_request,
    400: _bad_request,
    401: _unauthorized,
    404: _not_found,
    424: _backend,
    429: _too_many,
    431: _too_many_headers,
}
