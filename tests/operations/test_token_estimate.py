"""Token estimates: close enough for every kind of text, and corrected by responses; the user's counter in their place."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

import llmopt
from llmopt.errors import ConfigError
from llmopt.operations.token_estimate import TokenEstimator
from llmopt.testing.clock import SimulatedClock, run_simulated
from tests.support.configuration import provider_config
from tests.support.faults import FaultServer, answer_openai, json_answer


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


def learn(estimator: TokenEstimator, texts: Sequence[str], actual: float) -> float:
    """Report a usage; the error of the estimate before, as a part of the truth."""
    estimated = estimator.total(texts)
    estimator.learn(texts, round(actual))
    return abs(estimated - actual) / actual


@pytest.mark.parametrize("text", ["x" * 4_000, "é" * 3_000, "ж" * 2_000, "க" * 1_000, "字" * 1_000])
@pytest.mark.parametrize("true", [0.3, 3.0])
def test_responses_correct_the_estimate(text: str, true: float) -> None:
    """However wrong it began (L03), in every class of scripts."""
    estimator = TokenEstimator()
    actual = true * estimator.estimate(text)
    for _ in range(60):
        learn(estimator, [text], actual)
    assert estimator.estimate(text) == pytest.approx(actual, rel=0.05)


def test_responses_in_flight_correct_once() -> None:
    """A hundred requests were estimated before the first response: their corrections do not add up."""
    estimator = TokenEstimator()
    text = "x" * 4_000
    for _ in range(100):
        estimator.learn([text], 500)
    assert estimator.estimate(text) == pytest.approx(500, rel=0.02)


@pytest.mark.parametrize("text", ["x" * 4_000, "字" * 1_000])
def test_absurd_usage_is_limited(text: str) -> None:
    """To eight times the plain estimate, and a tenth of it."""
    estimator = TokenEstimator()
    plain = estimator.estimate(text)
    for _ in range(60):
        estimator.learn([text], 10**12)
    assert plain * 7 < estimator.estimate(text) <= plain * 8
    for _ in range(60):
        estimator.learn([text], 1)
    assert estimator.estimate(text) == pytest.approx(plain / 10, rel=0.2)


def test_reported_usage_corrects_the_estimates_of_short_texts() -> None:
    """After some responses the estimate is close, however wrong it began."""
    estimator = TokenEstimator()
    texts = ["some words in a row"] * 20
    for _ in range(40):
        learn(estimator, texts, 20 * 12)
    assert abs(estimator.estimate(texts[0]) - 12) <= 2
    assert estimator.estimate("x") >= 1


TOKENS_PER_CHARACTER = {"aaaa ": 0.18, "aaaé ": 0.21, "жжжж ": 0.23, "கககக ": 0.30, "字字字字字": 0.70}
"""Of a vocabulary for many languages (o200k), roughly; five characters of each class of scripts."""


@pytest.mark.parametrize("batch", [1, 8])
def test_scripts_in_a_mix_are_corrected_by_themselves(batch: int) -> None:
    """One ratio for all stays at an error of half; the batches are random."""
    rng = random.Random(3)
    texts = [word * rng.randint(10, 160) for word in TOKENS_PER_CHARACTER for _ in range(100)]
    rng.shuffle(texts)
    estimator = TokenEstimator()
    errors = []
    for start in range(0, len(texts), batch):
        chosen = texts[start : start + batch]
        errors.append(
            learn(estimator, chosen, sum(TOKENS_PER_CHARACTER[text[:5]] * len(text) for text in chosen))
        )
    late = errors[len(errors) // 2 :]
    assert sum(late) / len(late) < 0.06


def test_usage_of_zero_or_less_is_ignored() -> None:
    estimator = TokenEstimator()
    estimator.learn(["a"], 0)
    estimator.learn(["a"], -5)
    estimator.learn([], 5)
    assert repr(estimator) == "TokenEstimator(ratios=1.00, 1.00, 1.00, 1.00, 1.00)"


def test_a_lone_surrogate_is_estimated_too() -> None:
    """It is refused elsewhere."""
    assert TokenEstimator().estimate("\ud800") >= 1


# --- The user's counter


def words(text: str) -> int:
    return len(text.split())


def test_a_counter_is_asked_once_for_a_text_and_not_corrected() -> None:
    asked: list[str] = []

    def counter(text: str) -> int:
        asked.append(text)
        return words(text)

    estimator = TokenEstimator(counter)
    assert (estimator.estimate("two words"), estimator.total(["two words", "a b c"])) == (2, 5)
    estimator.learn(["two words"], 200)
    assert estimator.estimate("two words") == 2
    assert asked == ["two words", "a b c"]
    assert repr(estimator) == "TokenEstimator(counter)"


def returns(value: object) -> Callable[[str], int]:
    return lambda _: value  # type: ignore[return-value] # wrong on purpose


def raises(text: str) -> int:
    raise ValueError(text)


@pytest.mark.parametrize(
    ("counter", "told"),
    [
        (returns(1.5), r"whole number of tokens, 0 or more, and returned 1.5; .* lambda text"),
        (returns(-1), "returned -1"),
        (returns(True), "returned True"),
        (returns([1, 2]), "returned 'list'"),
        (returns(None), "returned 'NoneType'"),
        (raises, "raised ValueError for a text of 6 characters"),
        (7, "must be a function that takes a text and returns its tokens, not int"),
        ({"model": words}, "must name models as 'provider/model'"),
        ({"server/m": "words"}, "must be a function"),
    ],
)
def test_a_wrong_counter_is_one_clear_error(counter: object, told: str) -> None:
    """Where the client is made, and without the text."""
    with pytest.raises(ConfigError, match=told) as caught:
        llmopt.AsyncClient({}, token_counter=counter)  # type: ignore[arg-type] # wrong on purpose
    assert "llmopt'" not in str(caught.value)


def test_a_counter_that_fails_later_is_an_error_too() -> None:
    with pytest.raises(ConfigError, match="returned 'str'"):
        TokenEstimator(lambda text: 1 if text == "llmopt" else text).estimate("secret")  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize("counter", [words, {"server/m": words}], ids=["all models", "by model"])
def test_batches_and_chats_are_counted_by_it(counter: object) -> None:
    """Sixty a minute are batches of five, and a chat of seventy never fits."""

    async def main(clock: SimulatedClock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(provider_config(server, tpm=60), clock=clock, token_counter=counter) as client,  # type: ignore[arg-type]
        ):
            server.default(answer_openai)
            await client.embed("server/m", ["one two three", "four five", "six", "seven eight"])
            assert [len(request.json()["input"]) for request in server.requests] == [2, 2]
            server.default(
                json_answer({"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]})
            )
            question = [{"role": "user", "content": "word " * 70}]
            with pytest.raises(llmopt.CostNeverFits, match="about 75 tokens"):
                await client.chat("server/m", question, max_tokens=1)

    run_simulated(main)


def test_other_models_are_estimated() -> None:
    """The estimate of eight letters is three tokens, which two texts exceed."""

    async def main(clock: SimulatedClock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(
                provider_config(server, tpm=60), clock=clock, token_counter={"server/other": words}
            ) as client,
        ):
            server.default(answer_openai)
            await client.embed("server/m", ["one two ", "six six "])
            assert len(server.requests) == 2
            await client.embed("server/other", ["one two ", "six six "])
            assert len(server.requests) == 3

    run_simulated(main)
