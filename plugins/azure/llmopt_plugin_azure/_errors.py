"""Azure's errors: flat bodies from the gateway, nested ones from the model, numbers as codes.

errors.toml in this folder has an example of every known error.
"""

from __future__ import annotations

from typing import Final

from attrs import evolve

from llmopt import Failure, Settings, Verdict, VerdictKind, compatible
from llmopt.compatible import Rule
from llmopt_plugin_azure._entra import scope_of

RULES: Final = (
    # The resource as a whole, for what was sent before: no text of this request is at fault.
    Rule(VerdictKind.PERMISSION, words=r"resource has been .{0,20}blocked", status=(403,)),
)


def verdict_of(failure: Failure, settings: Settings) -> Verdict:
    """Classify an error of Azure."""
    verdict = compatible.classify(failure, rules=RULES)
    find_hint = _HINTS.get(failure.stated_status)
    return evolve(verdict, hint=find_hint(failure, settings)) if find_hint is not None else verdict


def _bad_request(failure: Failure, _settings: Settings) -> str:
    unsupported = failure.error.code == "OperationNotSupported"
    return "the model behind this deployment does something else; name another one" if unsupported else ""


def _unauthorized(failure: Failure, settings: Settings) -> str:
    if "audience is incorrect" not in failure.error.message.lower():
        return ""
    path = f"providers.{settings.provider}"
    if settings.credential_kind == "token" and settings.options.get("auth") != "entra":
        return f"the token provider of {path} must ask for the audience of this host, {scope_of(settings)}"
    if settings.options.get("auth") in ("token", "entra"):
        return f"set {path}.token_scope if the audience is wrong; it is {scope_of(settings)} now"
    return f"check the key, or if it is an Entra token set {path}.auth and {path}.token_scope"


def _not_found(failure: Failure, settings: Settings) -> str:
    path = f"providers.{settings.provider}"
    if failure.error.code == "DeploymentNotFound":
        return (
            "the model must be the name of a deployment; one made in the last five minutes may need a moment"
        )
    if failure.error.code == "404":
        return f"there is no such path: check {path}.base_url, {path}.surface and {path}.api_version"
    return ""


def _too_many_headers(_failure: Failure, settings: Settings) -> str:
    return f"Azure takes ten headers of one's own; see providers.{settings.provider}.headers"


_HINTS: Final = {
    # An error inside a stream comes after a 200 status that was already sent.
    200: _bad_request,
    400: _bad_request,
    401: _unauthorized,
    404: _not_found,
    431: _too_many_headers,
}
