"""Keys, texts and control characters are removed from messages, and nothing else is."""

from __future__ import annotations

import json
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable
from urllib.parse import quote

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from llmopt.values.calls import ChatCall, Settings
from llmopt.values.redaction import input_texts, place_of, redact, repeats_key, secrets_of
from llmopt.values.secret import HiddenStr, Secret

KEY = "canary-key-58d1c07e"
TEXT = "canary-text-f3a9c1 and so on"

MESSAGES = [
    "This model's maximum context length is 512 tokens, and your tokenizer found 600 tokens.",
    "model not found, try: ollama pull bge-m3",
    "Exceeded the maximum: fix your text",
    "Missing subscription key; the 'token' header is required",
    "the model is not found; a list of models is at /v1/models",
    "Rate limit reached for `text-embedding-3-small` in organization org-1 on tokens per min (TPM): Limit 1000000",
    "输入的文本过长, 最大长度为 512",
    "'role' must be 'user' or 'assistant' (roles must alternate)",
]
"""What servers say."""

WORDS = sorted({word.strip(".,:;'`()") for message in MESSAGES for word in message.split()} - {""})


@pytest.mark.row("S07")
@given(
    st.sampled_from(MESSAGES),
    st.sampled_from([*WORDS, "EMPTY", "placeholder", "x", "sk-1"]),
)
@example(MESSAGES[0], "token")
@example(MESSAGES[3], "token")
def test_placeholder_keys_are_not_removed_from_messages(message: str, key: str) -> None:
    """Servers without keys get "token", "ollama", "x": words that their own messages contain."""
    assume(len(key) < 8 or (key.isalpha() and f"'{key}'" not in message))
    assert redact(message, secrets=[key]) == message
    assert redact(message, secrets=[f"Bearer {key}"]) == message


@pytest.mark.row("S07")
@given(st.sampled_from(MESSAGES), st.integers(0, 90), st.integers(1, 31))
@example(MESSAGES[4], 4, 5)
@example(MESSAGES[4], 13, 9)
def test_texts_that_are_parts_of_a_message_are_not_removed(message: str, start: int, size: int) -> None:
    """A program may embed "model", "not found", or any phrase that a server uses too."""
    text = message[start : start + size]
    # Between quotation marks, or behind a colon, it cannot be told from a quotation.
    assume(text.strip() and not set(message[max(0, start - 2) : start + size + 1]) & set("'`:("))
    assert redact(message, texts=[text, text + " and more", "more and " + text]) == message


keys = st.text(
    st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters=";,"), min_size=8, max_size=300
).filter(lambda key: any(each.isdigit() for each in key))
SPELLINGS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "in capitals": str.upper,
    "escaped for a URL": lambda key: quote(key, safe=""),
    "in hexadecimal": lambda key: key.encode().hex(),
    "in base64": lambda key: b64encode(key.encode()).decode(),
    "in base64 behind a user": lambda key: b64encode(f"user:{key}".encode()).decode(),
    "in base64 for URLs": lambda key: urlsafe_b64encode(f"x:{key}".encode()).decode(),
    "as PHP writes JSON": lambda key: key.replace("/", "\\/"),
}


@pytest.mark.row("S02")
@given(
    keys,
    st.sampled_from(sorted(SPELLINGS)),
    st.sampled_from(MESSAGES),
    st.sampled_from(["{} {} {}", "{}({}){}", "{}={}&{}"]),
)
def test_a_key_is_removed_in_every_spelling(key: str, spelling: str, message: str, form: str) -> None:
    """And the words around it stay."""
    repeated = SPELLINGS[spelling](key)
    shown = redact(form.format(message, repeated, message), secrets=["unrelated-2", f"Bearer {key}"])
    # The ends of base64 also encode what is beside the key.
    assert repeated[8:-8] not in shown or len(repeated) < 24
    assert key not in shown
    assert "[key]" in shown
    assert message[:16] in shown


@pytest.mark.row("S02")
@given(st.integers(8, len(KEY)), st.integers(0, 11))
def test_a_part_of_a_key_is_removed(size: int, start: int) -> None:
    """A message is cut at a length, perhaps in the middle of the key."""
    part = KEY[start : start + size]
    shown = redact(f"you sent Bearer {part}", secrets=[KEY])
    assert shown == (
        "you sent Bearer [key]" if any(each.isdigit() for each in part) else f"you sent Bearer {part}"
    )


def test_both_ends_of_a_long_key_are_removed() -> None:
    """Tokens of identity providers are long, and a message quotes their beginning."""
    token = "eyJ" + "".join(f"{number:x}" for number in range(16_000))
    for part in (token[:400], token[-400:]):
        assert redact(f"bad token {part}", secrets=[token]) == "bad token [key]"


@pytest.mark.parametrize(
    ("message", "key", "shown"),
    [
        ("Incorrect key: test-key-1.", "test-key-1", "Incorrect key: [key]."),
        ("you sent Bearer test-key-1", "test-key-1234567890", "you sent Bearer [key]"),
        ("company embeddings are down", "company-embeddings-key-1", "company embeddings are down"),
        ("the key 's3cr3t!' is wrong", "s3cr3t!", "the key '[key]' is wrong"),
        ("the key 'placeholder' is wrong", "placeholder", "the key '[key]' is wrong"),
        (
            "no correct-horse-staple here, correct is another word",
            "correct-horse-staple",
            "no [key] here, correct is another word",
        ),
        ("a=1; session=f00dfacecafe is over", "a=1; session=f00dfacecafe", "a=1; [key] is over"),
    ],
)
def test_keys(message: str, key: str, shown: str) -> None:
    """Whole, cut off, of words, short, of a cookie."""
    assert redact(message, secrets=[key]) == shown


texts = st.lists(
    st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=12), min_size=40, max_size=120
).map(" ".join)


@pytest.mark.row("S02")
@given(texts, st.sampled_from(["", ".", "'"]), st.sampled_from(MESSAGES))
def test_a_quoted_text_is_removed_whole_or_cut_off(text: str, end: str, message: str) -> None:
    """The words of the server stay."""
    words = " ".join(text.split())
    for quoted in (
        words[:400] if len(words) <= 400 else words[:399] + "…",
        words[:100] + "..." if len(words) > 100 else words,
    ):
        shown = redact(f"{message}: '{quoted}{end}", texts=["another", text])
        assert words[:32] not in shown
        assert shown.startswith(message)


@pytest.mark.row("S02")
@pytest.mark.parametrize(
    ("message", "shown"),
    [
        (f"bad: {TEXT}", "bad: [text]"),
        (f"bad: {TEXT} {TEXT}, '{TEXT}' (x)", "bad: [text]' (x)"),
        ("bad: canary-text-f3a9c1 and", "bad: [text]"),
        ("bad: canary-text-f3a9c1...", "bad: [text]..."),
        (
            "input_value='canary-text-f...a9c1 and so on', input_type=str",
            "input_value='[text]', input_type=str",
        ),
        ("bad:\ncanary-text-f3a9c1  and\tso on", "bad: [text]"),
    ],
)
def test_quotations(message: str, shown: str) -> None:
    """Behind a colon, in a row, cut off at the end, in the middle, with other white space."""
    assert redact(message, texts=[TEXT]) == shown


def test_short_texts_are_removed_between_quotation_marks() -> None:
    """A text of few characters may be a password too."""
    assert redact("cannot embed 'hunter2'", texts=["hunter2"]) == "cannot embed '[text]'"
    assert redact("cannot embed \u201chunter2\u201d", texts=["hunter2"]) == "cannot embed \u201c[text]\u201d"


@pytest.mark.row("S02")
def test_redaction_ignores_white_space() -> None:
    """An error's line breaks are made spaces, so those of the text are too."""
    assert redact("bad: one two three four", texts=["one  two\n\tthree four"]) == "bad: [text]"


@pytest.mark.row("S04")
@given(st.text())
@example("a\x1b[31mred\r\nb\u2028c\x85d\x7fe\x9bf\u202eg\u2066h")
def test_control_characters_become_spaces(message: str) -> None:
    """Neither a terminal nor a log file can be steered by an error."""
    assert redact(message).isprintable()


def test_input_texts_leave_out_words_of_the_dialect() -> None:
    """The role of a message is not what the user wrote."""
    content = [{"type": "text", "text": "a question"}, {"type": "image_url", "image_url": {"url": "data:x"}}]
    call = ChatCall(
        model="m", messages=({"role": "user", "content": content}, {"role": "assistant", "content": "Yes."})
    )
    assert input_texts(call) == ["a question", "data:x", "Yes."]


def test_secrets_are_the_key_and_secret_headers() -> None:
    """Of all that is sent; a request id may contain none of them."""
    headers = {
        "x-gateway-token": "t0ken-12345",
        "cookie": "a=b",
        "x-team": "blue",
        "authorization": "Basic dXNlcjpwYXNzMQ",
    }
    settings = Settings(provider="p", credential=Secret(KEY), headers=headers)
    assert sorted(secrets_of(settings)) == ["Basic dXNlcjpwYXNzMQ", "a=b", KEY, "t0ken-12345"]
    assert repeats_key(f"id-{KEY}-1", secrets_of(settings))
    assert repeats_key(b64encode(KEY.encode()).decode(), secrets_of(settings))
    assert not repeats_key("req_011CSHoEeqs5C35K2UUqR7Fy", secrets_of(settings))


def test_a_hidden_string_masks_only_its_repr() -> None:
    """Only its representation is masked, in collections too."""
    hidden = HiddenStr("a")
    assert (repr({"k": hidden}), str(hidden), f"{hidden}", json.dumps(hidden)) == (
        "{'k': '***'}",
        "a",
        "a",
        '"a"',
    )


def test_the_place_of_an_exception_is_in_the_foreign_file() -> None:
    """Not that of a library which the foreign code calls."""
    try:
        json.loads("{")
    except ValueError as error:
        assert place_of(error, ()).startswith(" (values/test_redaction.py, line ")
        assert place_of(error, (__file__, json.__path__[0])) == ""


def test_parameters_of_the_query_that_hold_keys_are_secrets() -> None:
    """A version or a region is not one: messages name it."""
    keys = {"subscription-key": "s1", "code": "s2", "sig": "s3", "access_token": "s4"}
    settings = Settings(provider="acme", query={**keys, "api-version": "2024-10-21", "region": "eu"})
    assert sorted(secrets_of(settings)) == sorted(keys.values())
