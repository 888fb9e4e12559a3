"""Tells by its shape whether a JSON value under a successful status is an error, whatever provider wrote it.

Servers and gateways report errors in bodies and in events of streams in many forms. The forms are told apart by keys
and by the kind of their values, never by the words of one provider. Pure: no I/O, no clock, no state.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

_ERROR_KEYS: Final = (
    "error",
    "Error",
    "errors",
    "fault",
    "error_code",
    "error_msg",
    "error_message",
    "errorMessage",
)
"""Keys that hold an error whenever they hold something."""
_NESTED_KEYS: Final = ("Response", "response")
"""Keys below which some servers put the whole body."""
_NAME_KEYS: Final = ("object", "type", "event", "status")
"""Keys that say what a value is."""
_CODE_KEYS: Final = ("code", "statusCode", "status_code")
_WORD_KEYS: Final = ("message", "detail", "title")
_NAMES_ERROR: Final = re.compile(r"error|exception|fail(?:ed|ure)|^about:", re.IGNORECASE)
_ERROR_STATUS: Final = re.compile(r"[45][0-9][0-9]", re.ASCII)
# 0 and the statuses of HTTP; some providers write 20000.
_SUCCESS: Final = re.compile(r"0*|2[0-9][0-9]|20000|ok|success|none", re.IGNORECASE | re.ASCII)


def is_error(value: object) -> bool:
    """Whether a value is an error, and neither an answer nor a kind of value that is merely unknown.

    A value with an answer (``choices``, ``data``) is an error only if it has an ``error`` besides: some gateways send
    both. A value with words (``message``) is one unless it names itself as something else, which providers reserve the
    right to add.

    Args:
        value: as decoded from JSON. A list is an error if one of its values is.
    """
    if isinstance(value, list):
        return any(is_error(each) for each in value if isinstance(each, dict))
    if not isinstance(value, dict):
        return False
    # Truthy: some servers send ``"error": null`` with every event.
    if value.get("error") or _base_resp_failed(value.get("base_resp")):
        return True
    if value.get("choices") or (isinstance(value.get("data"), list) and value["data"]):
        return False
    nested = (inner for key in _NESTED_KEYS if isinstance(inner := value.get(key), dict))
    return (
        _has_error_key(value)
        or value.get("success") is False
        or value.get("ok") is False
        or _is_blocked(value.get("promptFeedback"))
        or any(_names_error(value.get(key)) for key in _NAME_KEYS)
        or any(_has_error_key(inner) for inner in nested)
        or _is_bare_error(value)
    )


def _has_error_key(value: Mapping[str, Any]) -> bool:
    return any(not _is_success(value.get(key)) for key in _ERROR_KEYS)


def _base_resp_failed(value: object) -> bool:
    """Whether MiniMax's ``base_resp``, which every answer of it has, states another status than success."""
    return isinstance(value, dict) and not _is_success(value.get("status_code"))


def _is_blocked(feedback: object) -> bool:
    """Whether a reply has no choice because a filter refused the prompt (Gemini)."""
    return isinstance(feedback, dict) and bool(feedback.get("blockReason"))


def _names_error(kind: object) -> bool:
    return isinstance(kind, str) and bool(_NAMES_ERROR.search(kind))


def _is_bare_error(value: Mapping[str, Any]) -> bool:
    """Whether a value without any key for errors has the code or the words of one."""
    # The message of a conversation is an object.
    if isinstance(value.get("message"), dict):
        return False
    codes = [code for key in _CODE_KEYS if type(code := value.get(key)) in (int, str)]
    if type(status := value.get("status")) is int:
        codes.append(status)
    words = [key for key in _WORD_KEYS if isinstance(value.get(key), (str, list, dict)) and value[key]]
    names_itself = any(isinstance(name := value.get(key), str) and name for key in _NAME_KEYS)
    if words or isinstance(value.get("msg"), str):
        states_code = any(not _is_success(code) for code in codes)
        # Several kinds of words are the problem details of RFC 9457, whose type may be any URI.
        return states_code or len(words) > 1 or bool(words and not codes and not names_itself)
    return not names_itself and any(_ERROR_STATUS.fullmatch(str(code)) for code in codes)


def _is_success(value: object) -> bool:
    """Whether a code, or what stands in place of an error, says that nothing is wrong."""
    if isinstance(value, (dict, list)):
        return not value
    return value is None or value is False or bool(_SUCCESS.fullmatch(str(value)))
