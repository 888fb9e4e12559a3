"""All checks, in the order in which an author mends things."""

from __future__ import annotations

from typing import Final

from llmopt.testing.kit import (
    checks_catalog,
    checks_chat,
    checks_chat_client,
    checks_client,
    checks_discovery,
    checks_embeddings,
    checks_errors,
    checks_import,
    checks_limits,
    checks_options,
    checks_package,
    checks_profile,
    checks_purity,
    checks_refusals,
    checks_request,
    checks_robust,
    checks_secrets,
    checks_stream,
    checks_transport,
)
from llmopt.testing.kit.check import Check
from llmopt.testing.kit.own_errors import own_checks
from llmopt.testing.kit.subject import Subject

CHECKS: Final[tuple[Check, ...]] = (
    *checks_discovery.check.checks,
    *checks_import.check.checks,
    *checks_package.check.checks,
    *checks_profile.check.checks,
    *checks_purity.check.checks,
    *checks_limits.check.checks,
    *checks_request.check.checks,
    *checks_options.check.checks,
    *checks_secrets.check.checks,
    *checks_embeddings.check.checks,
    *checks_refusals.check.checks,
    *checks_catalog.check.checks,
    *checks_chat.check.checks,
    *checks_stream.check.checks,
    *checks_errors.check.checks,
    *checks_robust.check.checks,
    *checks_transport.check.checks,
    *checks_client.check.checks,
    *checks_chat_client.check.checks,
)
"""The checks that every plugin gets."""


def checks_for(subject: Subject) -> tuple[Check, ...]:
    """The checks that one plugin gets: those of all, and one for each error of its own corpus."""
    return (*CHECKS, *own_checks(subject))
