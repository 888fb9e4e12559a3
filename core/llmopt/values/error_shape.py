"""Tells by its shape whether a JSON value under a successful status is an error, whatever provider wrote it.

Servers and gateways report errors in bodies and in events of streams in many forms. The forms are told apart by keys
and by the kind of their values, never by the words of one provider; three shapes beside an answer are
special to one provider each (MiniMax, Gemini, Groq). Pure: no I/O, no clock, no state.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

_ERROR_KEYS: Final = ("error", "errors", "fault", "errorcode", "errormsg", "errormessage")
"""Keys that hold an error whenever they hold something; all keys are compared as `plain_keys` gives them."""
_NESTED_KEYS: Final = ("response", "header")
"""Keys below which some servers put what others write at the top."""
_NAME_KEYS: Final = ("object", "type", "event", "status")
"""Keys that say what a value is."""
_CODE_KEYS: Final = ("code", "statuscode")
_WORD_KEYS: Final = ("message", "detail", "title")
_NAMES_ERROR: Final = re.compile(r"error|exception|fail(?:ed|ure)?\b|^about:", re.IGNORECASE)
ERROR_STATUS: Final = re.compile(r"[45][0-9][0-9]", re.ASCII)
# 0 and the statuses of HTTP; some providers write 20000.
_SUCCESS: Final = re.compile(
    r"0*|2[0-9][0-9]|20000|ok|success(?:ful|fully)?|succeeded|none", re.IGNORECASE | re.ASCII
)


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
    keys = plain_keys(value)
    # Truthy: some servers send ``"error": null`` with every event.
    if keys.get("error") or _failed_beside_an_answer(keys):
        return True
    if keys.get("choices") or (isinstance(keys.get("data"), list) and keys["data"]):
        return False
    return (
        _has_error_key(keys)
        or False in (keys.get("success"), keys.get("ok"))
        or any(map(_NAMES_ERROR.search, _names(keys)))
        or any(_has_error_key(inner) or _has_failed_code(inner) for inner in _nested(keys))
        or _has_failed_code(keys)
        or _has_bare_words(keys)
    )


def plain_keys(value: Mapping[Any, Any]) -> dict[str, Any]:
    """The object with its keys in lower case, without underscores and hyphens; of equal ones the first counts."""
    plain: dict[str, Any] = {}
    for key, each in value.items():
        plain.setdefault(str(key).lower().replace("_", "").replace("-", ""), each)
    return plain


def _failed_beside_an_answer(keys: Mapping[str, Any]) -> bool:
    """Whether a part that answers of MiniMax, Gemini and Groq may have states another status than success."""
    # A provider's own extension, such as "x_groq".
    extensions = (inner for key, inner in keys.items() if key.startswith("x") and isinstance(inner, dict))
    if any(inner.get("error") for inner in extensions):
        return True
    base, feedback = keys.get("baseresp"), keys.get("promptfeedback")
    if isinstance(base, dict) and any(not _is_success(code) for code in _codes(plain_keys(base))):
        return True
    return isinstance(feedback, dict) and bool(feedback.get("blockReason"))


def _has_error_key(keys: Mapping[str, Any]) -> bool:
    return any(not _is_success(keys.get(key)) for key in _ERROR_KEYS)


def _nested(keys: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    return (plain_keys(inner) for key in _NESTED_KEYS if isinstance(inner := keys.get(key), dict))


def _has_failed_code(keys: Mapping[str, Any]) -> bool:
    """Whether a value has the code of a failure, with words or as the status of an error."""
    codes = _codes(keys)
    if _words(keys) or isinstance(keys.get("msg"), str):
        return any(not _is_success(code) for code in codes)
    return not _names(keys) and any(ERROR_STATUS.fullmatch(str(code)) for code in codes)


def _has_bare_words(keys: Mapping[str, Any]) -> bool:
    """Whether a value has words and no code, and does not name itself."""
    words = _words(keys)
    # Several kinds of words are the problem details of RFC 9457, whose type may be any URI.
    return len(words) > 1 or bool(words and not _codes(keys) and not _names(keys))


def _codes(keys: Mapping[str, Any]) -> list[int | str]:
    codes: list[int | str] = [code for key in _CODE_KEYS if isinstance(code := keys.get(key), int | str)]
    # As text it is the name of a state.
    return [*codes, keys["status"]] if isinstance(keys.get("status"), int) else codes


def _words(keys: Mapping[str, Any]) -> list[str]:
    # The message of a conversation is an object.
    if isinstance(keys.get("message"), dict):
        return []
    return [
        key
        for key in _WORD_KEYS
        if isinstance(keys.get(key), (str, list, dict)) and not _is_success(keys[key])
    ]


def _names(keys: Mapping[str, Any]) -> list[str]:
    return [name for key in _NAME_KEYS if isinstance(name := keys.get(key), str) and name]


def _is_success(value: object) -> bool:
    """Whether a code, or what stands in place of an error, says that nothing is wrong."""
    if isinstance(value, (dict, list)):
        return not value
    return value is None or value is False or bool(_SUCCESS.fullmatch(str(value)))
