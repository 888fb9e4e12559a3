"""Chats with a real llama.cpp server, read by llmopt, by openai's own client, and by hand."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

import llmopt

KEY = "test-key"
MODEL = "server/smollm2"
QUESTIONS = [
    "Say hello.",
    "Name three colours, please.",
    "Why is the sky blue? Explain in “one” sentence für Kinder.",
]
EXACTLY: dict[str, Any] = {"temperature": 0.0, "seed": 7, "max_tokens": 16}
FRESH = {"cache_prompt": False}
"""What was computed for the question before changes the roundings of the next answer."""

Read = tuple[str, str | None, int, int, int]
"""Text, finish reason, tokens of the question, of the answer, of both."""


def config(url: str) -> dict[str, Any]:
    return {"providers": {"server": {"plugin": "local", "base_url": url, "api_key": KEY}}}


def asked(question: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": "You are brief."}, {"role": "user", "content": question}]


def read_of(reply: llmopt.ChatReply) -> Read:
    usage = reply.usage
    assert usage is not None
    return reply.text, reply.finish_reason, usage.prompt_tokens, usage.completion_tokens, usage.total_tokens


async def streamed(url: str, question: str, size: int) -> Read:
    async with (
        llmopt.AsyncClient(config(url)) as client,
        client.stream(MODEL, asked(question), buffer_size=size, extra=FRESH, **EXACTLY) as stream,
    ):
        texts = [event.text async for event in stream]
    assert "".join(texts) == stream.text
    return read_of(stream.reply)


def by_hand(url: str, question: str) -> Read:
    """What stands in the stream, read line by line with the standard library."""
    body = {
        "messages": asked(question),
        "stream": True,
        "stream_options": {"include_usage": True},
        **EXACTLY,
        **FRESH,
    }
    headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
    request = urllib.request.Request(f"{url}/chat/completions", json.dumps(body).encode(), headers)
    text, reason, usage = "", None, {}
    with urllib.request.urlopen(request, timeout=60) as answer:
        for line in answer:
            if not line.startswith(b"data: ") or line.strip() == b"data: [DONE]":
                continue
            event = json.loads(line[6:])
            usage = event.get("usage") or usage
            for choice in event["choices"]:
                text += choice["delta"].get("content") or ""
                reason = choice["finish_reason"] or reason
    return text, reason, usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]


@pytest.mark.parametrize("question", QUESTIONS)
async def test_a_stream_equals_the_raw_events(question: str, llama_url: str) -> None:
    """Text, finish reason and usage, however many events are parsed at once; and the same as in one piece."""
    expected = await asyncio.to_thread(by_hand, llama_url, question)
    assert expected[0]
    for size in (1, 10, 100):
        assert await streamed(llama_url, question, size) == expected
    async with llmopt.AsyncClient(config(llama_url)) as client:
        reply = await client.chat(MODEL, asked(question), extra=FRESH, **EXACTLY)
    assert read_of(reply) == expected


@pytest.mark.parametrize("question", QUESTIONS)
async def test_a_stream_equals_that_of_the_openai_client(question: str, llama_url: str) -> None:
    """Text, finish reason and usage."""
    openai: Any = pytest.importorskip("openai")
    text, reason, usage = "", None, None
    async with openai.AsyncOpenAI(base_url=llama_url, api_key=KEY) as client:
        answer = await client.chat.completions.create(
            model="smollm2",
            messages=asked(question),
            stream=True,
            stream_options={"include_usage": True},
            extra_body=FRESH,
            **EXACTLY,
        )
        async for chunk in answer:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                text += choice.delta.content or ""
                reason = choice.finish_reason or reason
    assert usage is not None
    theirs = (text, reason, usage.prompt_tokens, usage.completion_tokens, usage.total_tokens)
    assert await streamed(llama_url, question, 100) == theirs


async def test_parameters_reach_the_model(llama_url: str) -> None:
    """Bounds of the answer, a text to stop at, a form to keep to."""
    async with llmopt.AsyncClient(config(llama_url)) as client:
        short = await client.chat(MODEL, asked("Count from one to twenty."), max_tokens=5, temperature=0.0)
        assert short.usage is not None
        assert (short.finish_reason, short.usage.completion_tokens) == ("length", 5)
        form = {
            "type": "json_schema",
            "json_schema": {
                "name": "n",
                "schema": {
                    "type": "object",
                    "properties": {"n": {"type": "integer"}},
                    "required": ["n"],
                    "additionalProperties": False,
                },
            },
        }
        whole = await client.chat(MODEL, asked("Give me a number."), response_format=form, max_tokens=200)
        assert isinstance(json.loads(whole.text)["n"], int)


async def test_leaving_a_stream_stops_the_server(llama_url: str) -> None:
    """Its slot is free for the next one, which otherwise would wait for thousands of tokens."""
    async with llmopt.AsyncClient(config(llama_url)) as client:
        for _ in range(10):
            async with client.stream(MODEL, asked("Tell me a very long story."), max_tokens=1500) as stream:
                async for event in stream:
                    if event.text:
                        break
        async with asyncio.timeout(60):
            assert (await client.chat(MODEL, asked("Say hello."), max_tokens=3)).text


async def test_error_statuses_raise(llama_url: str) -> None:
    """A wrong key, and a question longer than the context, for a stream as for a chat."""
    wrong = config(llama_url)
    wrong["providers"]["server"]["api_key"] = "wrong-key-1"
    async with llmopt.AsyncClient(wrong) as client:
        with pytest.raises(llmopt.AuthError):
            async with client.stream(MODEL, asked("Hello?")):
                raise AssertionError
    async with llmopt.AsyncClient(config(llama_url)) as client:
        with pytest.raises((llmopt.ItemTooLong, llmopt.BadRequest)):
            async with client.stream(MODEL, asked("word " * 5000)):
                raise AssertionError


def test_the_command_line_chats(llama_url: str, tmp_path: Path) -> None:
    """A question on standard input, its answer on standard output."""
    settings = tmp_path / "llmopt.toml"
    settings.write_text(
        f'[providers.server]\nplugin = "local"\nbase_url = "{llama_url}"\napi_key_env = "SERVER_KEY"\n'
    )
    command = [sys.executable, "-m", "llmopt", "chat", MODEL, "--config", str(settings)]
    options = ["--temperature", "0", "--seed", "7", "--max-tokens", "16", "--system", "You are brief."]
    done = subprocess.run(
        [*command, *options],
        input=QUESTIONS[0],
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
        env={**os.environ, "SERVER_KEY": KEY},
    )
    assert done.stdout.strip()
    # It may have had more to say than it was allowed to.
    assert done.stderr == "" or "--max-tokens" in done.stderr
