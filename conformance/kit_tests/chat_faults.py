"""Planted faults of chat plugins."""

from __future__ import annotations

from kit_tests.planted import Fault

FAULTS = (
    Fault(
        name="reasoning mixed into the text",
        hook="parse_chat",
        source="""
@hookimpl
def parse_chat(call: ChatCall, response: HttpResponse) -> ChatReply | Failure:
    found = compatible.parse_chat(call, response)
    if isinstance(found, Failure):
        return found
    return evolve(found, text=found.reasoning + found.text)
""",
        check="chat.reasoning",
        says="the text is 'kit thinkskit says",
    ),
    Fault(
        name="an error with status 200 read as a reply",
        hook="parse_chat",
        source="""
@hookimpl
def parse_chat(call: ChatCall, response: HttpResponse) -> ChatReply | Failure:
    found = compatible.parse_chat(call, response)
    return ChatReply() if isinstance(found, Failure) else found
""",
        check="chat.failure-under-200",
        says="an error under status 200 passes for an answer",
    ),
    Fault(
        name="the first choice taken without a check",
        hook="parse_chat",
        source="""
@hookimpl
def parse_chat(call: ChatCall, response: HttpResponse) -> ChatReply | Failure:
    value = response.json
    if isinstance(value, dict) and value.get("error"):
        return Failure.from_response(response, operation="chat", model=call.model)
    return ChatReply(text=value["choices"][0]["message"]["content"])
""",
        check="chat.nonsense",
        says="for null: .*hook parse_chat raised TypeError",
    ),
    Fault(
        name="a finish reason of a wrong type",
        hook="parse_chat",
        source="""
@hookimpl
def parse_chat(call: ChatCall, response: HttpResponse) -> ChatReply | Failure:
    found = compatible.parse_chat(call, response)
    return found if isinstance(found, Failure) else evolve(found, finish_reason=["stop"])
""",
        check="chat.types",
        says=r"ChatReply.finish_reason is .*expected str \| None",
    ),
    Fault(
        name="text held back until the end",
        hook="parse_stream_event",
        source="""
_held = []

@hookimpl
def parse_stream_event(call: ChatCall, event: ServerEvent) -> tuple[ChatEvent, ...] | Failure:
    found = compatible.parse_stream_event(call, event)
    if isinstance(found, Failure):
        return found
    _held.extend(part.text for part in found)
    if any(part.last for part in found):
        text = "".join(_held)
        _held.clear()
        return (ChatEvent(text=text, last=True),)
    return tuple(evolve(part, text="") for part in found)
""",
        check="stream.at-once",
        says="4 pieces come as 1",
    ),
    Fault(
        name="a missing end",
        hook="parse_stream_event",
        source="""
@hookimpl
def provider_profile() -> Profile:
    return Profile(base_url="https://api.acme.example/v1", key_env=("ACME_API_KEY",), stream_end="done")

@hookimpl
def parse_stream_event(call: ChatCall, event: ServerEvent) -> tuple[ChatEvent, ...] | Failure:
    return () if event.data == "[DONE]" else compatible.parse_stream_event(call, event)
""",
        check="stream.end",
        says=r"those at \[\] are last; the profile says stream_end='done'",
    ),
    Fault(
        name="a finish reason in every event",
        hook="parse_stream_event",
        source="""
@hookimpl
def parse_stream_event(call: ChatCall, event: ServerEvent) -> tuple[ChatEvent, ...] | Failure:
    found = compatible.parse_stream_event(call, event)
    if isinstance(found, Failure):
        return found
    return tuple(evolve(part, finish_reason="stop") if part.text else part for part in found)
""",
        check="stream.finish-reason-once",
        says="a finish reason comes with 5 events",
    ),
    Fault(
        name="an error in a stream that adds nothing",
        hook="parse_stream_event",
        source="""
@hookimpl
def parse_stream_event(call: ChatCall, event: ServerEvent) -> tuple[ChatEvent, ...] | Failure:
    found = compatible.parse_stream_event(call, event)
    return () if isinstance(found, Failure) else found
""",
        check="stream.error",
        says="an error in a stream is no error",
    ),
    Fault(
        name="an event without data that is an error",
        hook="parse_stream_event",
        source="""
import json

@hookimpl
def parse_stream_event(call: ChatCall, event: ServerEvent) -> tuple[ChatEvent, ...] | Failure:
    try:
        json.loads(event.data.replace("[DONE]", "{}"))
    except ValueError:
        return Failure.from_event(event)
    return compatible.parse_stream_event(call, event)
""",
        check="stream.empty",
        says="for the data '' of an event 'message'",
    ),
    Fault(
        name="tool calls that lose their fragments",
        hook="parse_stream_event",
        source="""
@hookimpl
def parse_stream_event(call: ChatCall, event: ServerEvent) -> tuple[ChatEvent, ...] | Failure:
    found = compatible.parse_stream_event(call, event)
    if isinstance(found, Failure):
        return found
    return tuple(evolve(part, tool_calls=tuple(each for each in part.tool_calls if each.id)) for part in found)
""",
        check="stream.tool-calls",
        says=r"they are read as \[\('kit_tool', ''\)",
    ),
    Fault(
        name="output for every event",
        hook="parse_stream_event",
        source="""
@hookimpl
def parse_stream_event(call: ChatCall, event: ServerEvent) -> tuple[ChatEvent, ...] | Failure:
    print(end="")
    return compatible.parse_stream_event(call, event)
""",
        check="purity.no-output",
        says=r"parse_stream_event \(of event 0 of a stream\) prints",
    ),
    Fault(
        name="a state that is changed in place",
        hook="parse_stream_event",
        source="""
@hookimpl
def parse_stream_event(call: ChatCall, event: ServerEvent, state: object) -> StreamStep | Failure:
    seen = {} if state is None else state
    seen[len(seen)] = event.data
    found = compatible.parse_stream_event(call, event)
    return found if isinstance(found, Failure) else StreamStep(found, seen)
""",
        check="purity.arguments",
        says=r"parse_stream_event \(of event 1 of a stream\) changed its argument state",
    ),
    Fault(
        name="a parameter with a default",
        hook="parse_stream_event",
        source="""
@hookimpl
def parse_stream_event(call: ChatCall, event: ServerEvent, state: object = None) -> tuple[ChatEvent, ...] | Failure:
    return compatible.parse_stream_event(call, event)
""",
        check="discovery.defaults",
        says="parse_stream_event has a default for state",
    ),
    Fault(
        name="provider_data that is no JSON",
        hook="parse_chat",
        source="""
@hookimpl
def parse_chat(call: ChatCall, response: HttpResponse) -> ChatReply | Failure:
    found = compatible.parse_chat(call, response)
    return found if isinstance(found, Failure) else evolve(found, provider_data={"acme": {1j}})
""",
        check="chat.provider-data",
        says="provider_data: ",
    ),
    Fault(
        name="provider_data that is never sent back",
        hook="parse_chat",
        source="""
@hookimpl
def parse_chat(call: ChatCall, response: HttpResponse) -> ChatReply | Failure:
    found = compatible.parse_chat(call, response)
    return found if isinstance(found, Failure) else evolve(found, provider_data={"acme": "signed"})
""",
        check="chat.provider-data",
        says="the next request is the same without provider_data",
    ),
    Fault(
        name="provider_data that streams lose",
        source="""
@hookimpl
def parse_chat(call: ChatCall, response: HttpResponse) -> ChatReply | Failure:
    found = compatible.parse_chat(call, response)
    return found if isinstance(found, Failure) else evolve(found, provider_data={"acme": "signed"})

@hookimpl
def build_request(call: Call, settings: Settings) -> HttpRequest:
    found = compatible.build_request(call, settings)
    if not isinstance(call, ChatCall):
        return found
    signed = [message.get("provider_data", {}).get("acme") for message in call.messages]
    return evolve(found, json={**found.json, "signed": signed})
""",
        check="stream.provider-data",
        says="the request behind a stream is .*expected: ",
    ),
    Fault(
        name="messages sent with what other providers left in them",
        hook="build_request",
        source="""
@hookimpl
def build_request(call: Call, settings: Settings) -> HttpRequest:
    found = compatible.build_request(call, settings)
    return evolve(found, json={**found.json, "messages": call.messages}) if isinstance(call, ChatCall) else found
""",
        check="request.provider-data",
        says="provider_data of another provider is in the request",
    ),
    Fault(
        name="a parameter of a chat that is left out",
        hook="build_request",
        source="""
@hookimpl
def build_request(call: Call, settings: Settings) -> HttpRequest:
    if isinstance(call, ChatCall):
        call = evolve(call, seed=None)
    return compatible.build_request(call, settings)
""",
        check="request.chat-options",
        says="seed=24680 changes nothing in the request",
    ),
    Fault(
        name="a parameter of a chat that becomes another",
        hook="build_request",
        source="""
@hookimpl
def build_request(call: Call, settings: Settings) -> HttpRequest:
    if isinstance(call, ChatCall) and call.max_tokens:
        call = evolve(call, max_tokens=1000)
    return compatible.build_request(call, settings)
""",
        check="request.chat-numbers",
        says="max_tokens=1357 is not in the body",
    ),
)
