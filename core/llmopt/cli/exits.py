"""How a command ends: its exit code, and the sentence that says why."""

from __future__ import annotations

from enum import IntEnum

from llmopt.errors import ConfigError, InvalidInput, LLMOptError, PluginError, UnknownProvider


class Exit(IntEnum):
    """The exit codes of every command."""

    OK = 0
    FAILED = 1
    USAGE = 2
    SETUP = 3
    INTERRUPTED = 130


class CommandError(Exception):
    """A command cannot go on. The message is one sentence with what to do.

    Args:
        message: for people.
        code: what the process exits with.
    """

    def __init__(self, message: str, code: Exit = Exit.USAGE) -> None:
        super().__init__(message)
        self.code = code


class BadInput(CommandError):
    """The input cannot be read; the message names the file, and the line where there is one."""


def code_of(error: BaseException) -> Exit:
    """The exit code that an error stands for."""
    if isinstance(error, CommandError):
        return error.code
    if isinstance(error, (ConfigError, UnknownProvider, PluginError)):
        return Exit.SETUP
    if isinstance(error, InvalidInput):
        return Exit.USAGE
    return Exit.INTERRUPTED if isinstance(error, KeyboardInterrupt) else Exit.FAILED


def sentence_of(error: BaseException) -> str:
    """What to tell people about an error."""
    if isinstance(error, LLMOptError):
        return error.message
    if isinstance(error, CommandError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "interrupted."
    if isinstance(error, OSError):
        return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}."
    return (
        f"this is a fault of llmopt or of a plugin ({type(error).__name__}: {error}); "
        "run it again with LLMOPT_TRACEBACK=1 to see where, and report it."
    )
