"""The steps of an attempt: their two drivers ask no policy themselves."""

from __future__ import annotations

import ast
import inspect
from types import ModuleType

import pytest

from llmopt.engine import pipeline, streaming

POLICIES = {
    *("policies", "acquire", "try_acquire", "concurrency", "rate_limiter", "reply_limiter", "breakers"),
    *("waiting_calls", "loop_lag", "choose", "has_alternative", "permit", "lease", "slot"),
}
"""Attributes through which a policy is asked, or what it granted is used."""


@pytest.mark.parametrize("driver", [pipeline, streaming], ids=["lane and pipeline", "stream"])
def test_no_driver_asks_a_policy(driver: ModuleType) -> None:
    """The order of the policies stands in one place, `RequestSteps.admit`."""
    tree = ast.parse(inspect.getsource(driver))
    named = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert named & POLICIES == set()
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not imported & {
        f"llmopt.policies.{name}"
        for name in ("circuit_breaker", "concurrency_limit", "rate_limiter", "quota", "load_balancer")
    }
