"""The chat methods of the synchronous client."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llmopt.client.arguments import WhenOpen
from llmopt.client.async_chat import AsyncChat
from llmopt.client.loop_thread import LoopThread
from llmopt.client.sync_chat_stream import SyncChatStream
from llmopt.operations.chat_inputs import Messages
from llmopt.values.chat import ChatReply


class SyncChat:
    """What `llmopt.Client` does with conversations."""

    _client: AsyncChat

    def _running(self) -> LoopThread:
        raise NotImplementedError

    def chat(
        self,
        model: str,
        messages: Messages,
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        presence_penalty: float | None = None,
        frequency_penalty: float | None = None,
        tools: Iterable[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        parallel_tool_calls: bool | None = None,
        response_format: Mapping[str, Any] | None = None,
        reasoning_effort: str | None = None,
        deadline: float | None = None,
        when_open: WhenOpen = "fail",
        extra: Mapping[str, Any] | None = None,
    ) -> ChatReply:
        """Ask for an answer, and wait for the whole of it; see `llmopt.AsyncClient.chat`."""
        thread = self._running()
        return thread.run(
            self._client.chat(
                model,
                messages,
                max_tokens=max_tokens,
                temperature=temperature,
                top_p=top_p,
                stop=stop,
                seed=seed,
                presence_penalty=presence_penalty,
                frequency_penalty=frequency_penalty,
                tools=tools,
                tool_choice=tool_choice,
                parallel_tool_calls=parallel_tool_calls,
                response_format=response_format,
                reasoning_effort=reasoning_effort,
                deadline=deadline,
                when_open=when_open,
                extra=extra,
            )
        )

    def stream(
        self,
        model: str,
        messages: Messages,
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        presence_penalty: float | None = None,
        frequency_penalty: float | None = None,
        tools: Iterable[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        parallel_tool_calls: bool | None = None,
        response_format: Mapping[str, Any] | None = None,
        reasoning_effort: str | None = None,
        deadline: float | None = None,
        when_open: WhenOpen = "fail",
        extra: Mapping[str, Any] | None = None,
        buffer_size: int = 100,
    ) -> SyncChatStream:
        """Ask for an answer, and get it while it comes; see `llmopt.AsyncClient.stream`.

        Returns:
            An iterator of `llmopt.ChatEvent`, to be used in ``with``.
        """
        thread = self._running()
        stream = self._client.stream(
            model,
            messages,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            stop=stop,
            seed=seed,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            tools=tools,
            tool_choice=tool_choice,
            parallel_tool_calls=parallel_tool_calls,
            response_format=response_format,
            reasoning_effort=reasoning_effort,
            deadline=deadline,
            when_open=when_open,
            extra=extra,
            buffer_size=buffer_size,
        )
        return SyncChatStream(thread, stream.source)
