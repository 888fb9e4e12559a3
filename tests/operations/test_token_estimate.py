"""Estimates of tokens: close enough for every kind of text, and corrected by responses."""

from __future__ import annotations

import pytest

from llmopt.operations.token_estimate import TokenEstimator


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("The quick brown fox jumps over the lazy dog near the river bank.", 14),
        ("def read(path: str) -> bytes:\n    return open(path, 'rb').read()\n", 18),
        ("机器学习模型把文本变成向量。", 16),
        ("Быстрая лиса перепрыгивает через ленивую собаку.", 20),
        ("", 1),
    ],
)
def test_the_first_estimate_is_within_a_factor_of_two(text: str, tokens: int) -> None:
    """Without any response."""
    assert tokens / 2 <= TokenEstimator().estimate(text) <= tokens * 2


def test_responses_correct_the_estimate() -> None:
    """However wrong it began (L03); absurd usage is limited."""
    for true in (0.3, 3.0):
        estimator = TokenEstimator()
        for _ in range(60):
            estimated = estimator.estimate("x" * 4_000)
            estimator.learn(estimated, int(1_000 * true))
        assert estimator.estimate("x" * 4_000) == pytest.approx(1_000 * true, rel=0.05)
    estimator.learn(1, 10**12)
    assert estimator.estimate("x" * 4_000) < 8_100


def test_usage_of_zero_or_less_is_ignored() -> None:
    estimator = TokenEstimator()
    estimator.learn(0, 5)
    estimator.learn(5, 0)
    assert repr(estimator) == "TokenEstimator(ratio=1.00)"


def test_a_lone_surrogate_is_estimated_too() -> None:
    """It is refused elsewhere."""
    assert TokenEstimator().estimate("\ud800") >= 1


def test_reported_usage_corrects_the_estimates() -> None:
    """After some responses the estimate is close, however wrong it began."""
    estimator = TokenEstimator()
    texts = ["some words in a row"] * 20
    for _ in range(40):
        estimated = sum(map(estimator.estimate, texts))
        estimator.learn(estimated, 20 * 12)
    assert abs(estimator.estimate(texts[0]) - 12) <= 2
    assert estimator.estimate("x") >= 1
