"""A check: one sentence that must be true of a plugin, and a way to find out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeAlias

from attrs import field, frozen

from llmopt.errors import LLMOptError

if TYPE_CHECKING:
    from llmopt.testing.kit.subject import Subject

Ask: TypeAlias = "Callable[[Subject], None]"


class CheckFailed(AssertionError):
    """What a check found in a plugin, and what it expected there, in words for the plugin's author."""

    def __init__(self, found: str, expected: str = "") -> None:
        super().__init__(found)
        self.found: Final = found
        self.expected: Final = expected


class NotApplicable(Exception):
    """A check has nothing to look at in this plugin; the text says why."""


def expect(condition: object, found: str, expected: str = "") -> None:
    """Fail the running check unless a condition holds.

    Raises:
        CheckFailed: it does not. ``expected`` is the check's own sentence unless given.
    """
    if not condition:
        raise CheckFailed(found, expected)


@frozen(kw_only=True)
class Check:
    """One check.

    Attributes:
        id: family and name, such as "request.text-order".
        expects: the sentence that must be true.
        ask: looks; raises `CheckFailed` or `NotApplicable`.
    """

    id: str
    expects: str
    ask: Ask = field(repr=False)

    def run(self, subject: Subject) -> None:
        """Hold a plugin against this check.

        Raises:
            CheckFailed: it does not conform; the text is for its author.
            NotApplicable: there is nothing to check.
        """
        failed: CheckFailed | None = None
        try:
            self.ask(subject)
        except CheckFailed as error:
            failed = error
        except LLMOptError as error:
            failed = CheckFailed(explain(error))
        except NotApplicable:
            raise
        except Exception as error:  # noqa: BLE001 - a plugin may return anything, and is to blame for it
            failed = CheckFailed(
                f"what the plugin gave cannot be looked at: {type(error).__name__}: {error}{_place(error)}"
            )
        if failed is not None:
            raise CheckFailed(self._report(subject, failed), failed.expected or self.expects) from None

    def _report(self, subject: Subject, failed: CheckFailed) -> str:
        expected = failed.expected or self.expects
        return (
            f"plugin {subject.name!r} does not conform to {self.id}\n"
            f"  found:    {_indented(failed.found)}\n"
            f"  expected: {_indented(expected)}"
        )


class Family:
    """Checks that belong together; a module of checks has one."""

    def __init__(self, name: str) -> None:
        self._name: Final = name
        self._checks: Final[list[Check]] = []

    def __call__(self, name: str) -> Callable[[Ask], Ask]:
        """Make a check of a function; its docstring is the sentence that must be true."""

        def added(ask: Ask) -> Ask:
            sentence = " ".join((ask.__doc__ or "").split())
            self._checks.append(Check(id=f"{self._name}.{name}", expects=sentence, ask=ask))
            return ask

        return added

    @property
    def checks(self) -> tuple[Check, ...]:
        """All of them, in the order they are written in."""
        return tuple(self._checks)


def explain(error: BaseException) -> str:
    """An error with its cause and the place in the plugin that raised it."""
    text = str(error) if isinstance(error, LLMOptError) else f"{type(error).__name__}: {error}"
    cause = error.__cause__
    if cause is None:
        return text
    return f"{text}\n{type(cause).__name__}: {str(cause)[:200]}{_place(cause)}"


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    if trace is None:
        return ""
    while trace.tb_next is not None:
        trace = trace.tb_next
    return f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})"


def _indented(text: str) -> str:
    return text.replace("\n", "\n" + " " * 12)
