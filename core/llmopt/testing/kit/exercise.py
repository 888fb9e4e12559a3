"""Every hook asked under observation: what it gave, did, changed and shared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import frozen

from llmopt.errors import LLMOptError
from llmopt.testing.kit.guard import Act, Watch
from llmopt.testing.kit.prints import fingerprint, scribble, work_out
from llmopt.testing.kit.questions import Question, questions
from llmopt.testing.kit.subject import Subject


@frozen(kw_only=True)
class Exercise:
    """What came of asking one hook one question.

    Attributes:
        hook: name of the hook.
        label: the question in words.
        acts: what it did besides computing.
        changed: names of the arguments that were not the same afterwards.
        repeats: whether it gave the same for the same.
        shares: what is changed elsewhere when its result is: "an argument", "a later result", "".
    """

    hook: str
    label: str
    acts: tuple[Act, ...]
    changed: tuple[str, ...]
    repeats: bool
    shares: str

    @property
    def title(self) -> str:
        """Hook and question."""
        return f"{self.hook} ({self.label})"


def exercises(subject: Subject) -> tuple[Exercise, ...]:
    """All questions to all hooks that the plugin has, asked once for all checks."""
    if "exercises" not in subject.findings:
        asked = [each for each in questions(subject) if subject.implements(each.hook)]
        subject.findings["exercises"] = tuple(_exercise(subject, each) for each in asked)
    found: tuple[Exercise, ...] = subject.findings["exercises"]
    return found


def _exercise(subject: Subject, question: Question) -> Exercise:
    hook: Callable[..., Any] = getattr(subject.hooks, question.hook)
    watch = Watch(subject.sources)
    given = question.arguments()
    first = fingerprint(_outcome(watch, hook, given))
    changed = _differences(given, question)
    again = question.arguments()
    result = _outcome(watch, hook, again)
    second = fingerprint(result)
    return Exercise(
        hook=question.hook,
        label=question.label,
        acts=tuple(watch.acts),
        changed=changed,
        repeats=first == second,
        shares=_shared(watch, hook, question, again, result) if first == second and not changed else "",
    )


def _outcome(watch: Watch, hook: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """What the hook gives, or the error it ends with."""
    try:
        return watch.call(hook, **arguments)
    except LLMOptError as error:
        return error


def _differences(given: dict[str, Any], question: Question) -> tuple[str, ...]:
    fresh = question.arguments()
    return tuple(
        name
        for name, value in given.items()
        if fingerprint(work_out(value)) != fingerprint(work_out(fresh[name]))
    )


def _shared(
    watch: Watch, hook: Callable[..., Any], question: Question, given: dict[str, Any], result: Any
) -> str:
    before = fingerprint(result)
    if not scribble(result):
        return ""
    if _differences(given, question):
        return "an argument"
    return "" if fingerprint(_outcome(watch, hook, question.arguments())) == before else "a later result"
