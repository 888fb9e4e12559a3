"""A conversation with tools over several turns, whole or streamed, kept as objects or stored as JSON between the turns."""

from __future__ import annotations

import json
from typing import Any

import llmopt

TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
QUESTION = {"role": "user", "content": "Where is the key?"}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}


async def ask(
    client: llmopt.AsyncClient, model: str, messages: list[Any], *, streamed: bool
) -> llmopt.ChatReply:
    """The reply to some messages."""
    if not streamed:
        return await client.chat(model, messages, tools=TOOLS, reasoning_effort="high")
    async with client.stream(model, messages, tools=TOOLS, reasoning_effort="high") as stream:
        async for _ in stream:
            pass
    return stream.reply


async def converse(
    client: llmopt.AsyncClient, model: str, turns: int, *, streamed: bool, stored: bool
) -> list[llmopt.ChatReply]:
    """The replies of a conversation: each call of a tool gets a result, each other reply another message of the user's.

    Args:
        client: has the conversation.
        model: is asked.
        turns: number of replies.
        streamed: whether the replies are streamed.
        stored: whether all messages are stored as JSON and read again after each turn.
    """
    messages: list[Any] = [{"role": "system", "content": "Be brief."}, QUESTION]
    replies: list[llmopt.ChatReply] = []
    for _ in range(turns):
        reply = await ask(client, model, messages, streamed=streamed)
        replies.append(reply)
        content = [{"type": "text", "text": "no"}, PICTURE]
        # In another order than that of the calls, which is allowed.
        results = [
            {"role": "tool", "tool_call_id": each.id, "content": content}
            for each in reversed(reply.tool_calls)
        ]
        messages += [reply.message, *(results or [{"role": "user", "content": "Thank you."}])]
        if stored:
            plain = [each.as_dict() if isinstance(each, llmopt.Message) else each for each in messages]
            messages = json.loads(json.dumps(plain))
    return replies
