"""The chat methods of the asynchronous client."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmopt.client.arguments import WhenOpen
    from llmopt.client.parts import Parts
    from llmopt.operations.chat_inputs import ChatParameters, Messages
    from llmopt.operations.chat_stream import ChatStream
    from llmopt.values.chat import ChatReply


class AsyncChat:
    """What `llmopt.AsyncClient` does with conversations."""

    async def chat(
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
        """Ask for an answer, and wait for the whole of it.

        Parameters that are None are not sent, and the provider's own defaults hold. Each is given the name that the
        provider has for it. A request that broke off, and may have been carried out, is repeated once at most.

        Args:
            model: "provider/model".
            messages: the conversation, oldest first: mappings with "role" and "content" in the common
                dialect, or `llmopt.Message`.
            max_tokens: most tokens of the answer, reasoning among them.
            temperature: how freely to choose, 0 for hardly.
            top_p: the share of likely tokens to choose from, 0 to 1.
            stop: text or texts at which the answer ends.
            seed: asks for the same answer each time, where the provider can.
            presence_penalty: against tokens that occurred, -2 to 2.
            frequency_penalty: against tokens by how often they occurred, -2 to 2.
            tools: the tools that the model may call, in the common dialect.
            tool_choice: "auto", "none", "required", or a mapping that names a tool.
            parallel_tool_calls: whether several tools may be called at once.
            response_format: a mapping such as ``{"type": "json_object"}``, or one with a JSON schema.
            reasoning_effort: how long to think: "none", "minimal", "low", "medium", "high" or the provider's word.
            deadline: seconds for the whole call, None for no bound but the attempt's 600 s.
            when_open: whether to fail or to wait while the provider is given a rest.
            extra: further keys of the request's body, passed on as given; they win over all others.

        Returns:
            The answer: text, reasoning, tool calls, finish reason, usage.

        Raises:
            InvalidInput: a message or a parameter cannot be sent; ``index`` is a message's. Nothing was sent.
            LLMOptError: there is no answer; the kind says what to do.
        """
        parameters: ChatParameters = {
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "stop": stop,
            "seed": seed,
            "presence_penalty": presence_penalty,
            "frequency_penalty": frequency_penalty,
            "tools": tools,
            "tool_choice": tool_choice,
            "parallel_tool_calls": parallel_tool_calls,
            "response_format": response_format,
            "reasoning_effort": reasoning_effort,
        }
        return await self._parts.chat_job(model, messages, parameters, deadline, when_open, extra).ask()

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
    ) -> ChatStream:
        """Ask for an answer, and get it while it comes.

        ::

            async with client.stream("openai/gpt-5-mini", messages) as answer:
                async for event in answer:
                    print(event.text, end="", flush=True)
            print(answer.usage)

        The request is sent on entering the block. A failure before the first event is retried like any other; once an event
        was handed out nothing is repeated. A first event that does not come within 60 s (300 s with a
        ``reasoning_effort``) is an `AttemptTimeout`, silence later a `StreamIdle`; all bounds are the
        provider's ``timeouts``, see docs/configuration.md.

        Args:
            model: as for `chat`, and so all that follow.
            messages: the conversation.
            max_tokens: most tokens of the answer.
            temperature: how freely to choose.
            top_p: the share of likely tokens.
            stop: where the answer ends.
            seed: for the same answer.
            presence_penalty: against tokens that occurred.
            frequency_penalty: against tokens by how often.
            tools: what the model may call.
            tool_choice: which of them.
            parallel_tool_calls: whether several at once.
            response_format: form of the answer.
            reasoning_effort: how long to think.
            deadline: seconds for the whole stream, None for no bound.
            when_open: whether to fail or to wait while the provider is given a rest.
            extra: further keys of the body.
            buffer_size: of the events that have arrived together, most that are parsed together. Nothing
                waits for so many, and what comes out is the same for any number.

        Returns:
            An asynchronous iterator of `llmopt.ChatEvent`; its ``text``, ``reasoning``, ``tool_calls``,
            ``usage``, ``finish_reason`` and ``reply`` are the answer so far. To be used in ``async with``,
            so that leaving the loop early ends the request.

        Raises:
            InvalidInput: a message or a parameter cannot be sent.

        Entering and iterating raise `StreamInterrupted` or `StreamIdle` for an answer that breaks off, with
        what had come as ``text`` and ``partial``, and any `LLMOptError` when there is no answer.
        """
        parameters: ChatParameters = {
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "stop": stop,
            "seed": seed,
            "presence_penalty": presence_penalty,
            "frequency_penalty": frequency_penalty,
            "tools": tools,
            "tool_choice": tool_choice,
            "parallel_tool_calls": parallel_tool_calls,
            "response_format": response_format,
            "reasoning_effort": reasoning_effort,
        }
        from llmopt.operations.chat_inputs import checked_buffer_size
        from llmopt.operations.chat_source import ChatSource
        from llmopt.operations.chat_stream import ChatStream

        size = checked_buffer_size(buffer_size)
        job = self._parts.chat_job(model, messages, parameters, deadline, when_open, extra)
        return ChatStream(ChatSource(job, buffer_size=size))

    @property
    def _parts(self) -> Parts:
        raise NotImplementedError
