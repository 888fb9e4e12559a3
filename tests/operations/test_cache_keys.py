"""Cache keys: everything that can change a response changes its key."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

import llmopt
from llmopt.cache.files import installation_secret
from llmopt.engine.engine import Engine
from llmopt.operations.cache_keys import CacheKeys
from llmopt.values.calls import EmbedCall
from tests.support.faults import FaultServer, answer_openai

SECRET = b"s" * 32
CALL = EmbedCall(model="m")


def provider_of(config: Mapping[str, Any], name: str = "s") -> Any:
    client = llmopt.AsyncClient({"providers": {name: {"plugin": "local", **config}}})
    return client._components.registry.get(name)


def keys(identity: tuple[str, ...] = ("local 1",), secret: bytes = SECRET) -> CacheKeys:
    return CacheKeys(secret, lambda _: identity, Engine().endpoints)


def text_key(
    entry: Mapping[str, Any], call: EmbedCall = CALL, model: str = "m", text: str = "a", **more: Any
) -> bytes:
    (found,) = keys(**more).texts(provider_of(entry), call).for_texts(model, [text])
    return found


BASE = {"base_url": "http://127.0.0.1:9/v1", "api_key": "key-one"}

OTHERS: dict[str, Callable[[], bytes]] = {
    "itself": lambda: text_key(BASE),
    "text": lambda: text_key(BASE, text="b"),
    "text with a space": lambda: text_key(BASE, text="a "),
    "NFC": lambda: text_key(BASE, text=unicodedata.normalize("NFC", "é")),
    "NFD": lambda: text_key(BASE, text=unicodedata.normalize("NFD", "é")),
    "model": lambda: text_key(BASE, evolve(CALL, model="m2")),
    "answering model": lambda: text_key(BASE, model="m-2026"),
    "dimensions": lambda: text_key(BASE, evolve(CALL, dimensions=8)),
    "input type": lambda: text_key(BASE, evolve(CALL, input_type="query")),
    "unknown field": lambda: text_key(BASE, evolve(CALL, extra={"novel": 1})),
    "unknown field's value": lambda: text_key(BASE, evolve(CALL, extra={"novel": 2})),
    "unknown field's type": lambda: text_key(BASE, evolve(CALL, extra={"novel": "1"})),
    "unknown field within": lambda: text_key(BASE, evolve(CALL, extra={"novel": {"user": 1}})),
    "encoding": lambda: text_key(BASE, evolve(CALL, extra={"encoding_format": "base64"})),
    "key": lambda: text_key({**BASE, "api_key": "key-two"}),
    "no key": lambda: text_key({"base_url": BASE["base_url"]}),
    "path": lambda: text_key({**BASE, "base_url": "http://127.0.0.1:9/other/v1"}),
    "port": lambda: text_key({**BASE, "base_url": "http://127.0.0.1:10/v1"}),
    "header": lambda: text_key({**BASE, "headers": {"x-tenant": "one"}}),
    "header's value": lambda: text_key({**BASE, "headers": {"x-tenant": "two"}}),
    "call's header": lambda: text_key(BASE, evolve(CALL, headers={"x-tenant": "one"})),
    "call's header's value": lambda: text_key(BASE, evolve(CALL, headers={"x-tenant": "two"})),
    "query": lambda: text_key({**BASE, "query": {"tenant": "one"}}),
    "query's value": lambda: text_key({**BASE, "query": {"tenant": "two"}}),
    "plugin's option": lambda: text_key({**BASE, "flavour": "vllm"}),
    "endpoint": lambda: text_key({"endpoints": [BASE, {**BASE, "base_url": "http://127.0.0.1:11/v1"}]}),
    "plugin's version": lambda: text_key(BASE, identity=("local 2",)),
    "installation": lambda: text_key(BASE, secret=b"t" * 32),
    "a function's key": lambda: text_key({**BASE, "api_key": lambda: "key-one"}),
    "entry": lambda: keys().texts(provider_of(BASE, "t"), CALL).for_texts("m", ["a"])[0],
    "plugin": lambda: text_key({**BASE, "plugin": "openai"}),
}


@pytest.mark.row("K05")
def test_each_relevant_option_changes_the_key() -> None:
    """All of them distinct; each of them 32 bytes."""
    found = {name: make() for name, make in OTHERS.items()}
    assert len(set(found.values())) == len(found), found
    assert {len(each) for each in found.values()} == {32}


SAME: dict[str, Callable[[], bytes]] = {
    "again": lambda: text_key(BASE),
    "user": lambda: text_key(BASE, evolve(CALL, extra={"user": "somebody"})),
    "metadata": lambda: text_key(BASE, evolve(CALL, extra={"metadata": {"a": "b"}})),
    "trace": lambda: text_key(BASE, evolve(CALL, headers={"traceparent": "00-1-2-01", "x-request-id": "3"})),
    "time-outs": lambda: text_key({**BASE, "timeouts": {"read": 3}}),
    "retries": lambda: text_key({**BASE, "max_retries": 7, "pool_size": 3, "rpm": 10, "max_batch_size": 2}),
}


@pytest.mark.parametrize("name", SAME)
def test_irrelevant_options_do_not_change_the_key(name: str) -> None:
    """Otherwise no call would be a hit."""
    assert SAME[name]() == text_key(BASE)


def test_the_order_of_fields_does_not_change_the_key() -> None:
    """Canonical JSON."""
    one = text_key(BASE, evolve(CALL, extra={"a": 1, "b": {"c": 2, "d": 3}}))
    other = text_key(BASE, evolve(CALL, extra={"b": {"d": 3, "c": 2}, "a": 1}))
    assert one == other


def test_model_list_keys_depend_on_provider_and_credential() -> None:
    """By the same rules; none is that of a text."""
    made = [
        keys().model_list(provider_of(BASE)),
        keys().model_list(provider_of({**BASE, "api_key": "key-two"})),
        keys().model_list(provider_of({**BASE, "base_url": "http://127.0.0.1:9/other/v1"})),
        keys().model_list(provider_of({**BASE, "headers": {"x-tenant": "one"}})),
        keys(("local 2",)).model_list(provider_of(BASE)),
        text_key(BASE),
        keys().texts(provider_of(BASE), CALL).answering_model(),
    ]
    assert len(set(made)) == len(made)
    assert made[0] == keys().model_list(provider_of(BASE))


def test_a_credential_function_has_a_key_for_this_process_only() -> None:
    """Whose key it gives nobody can tell from outside."""
    assert keys().stable(provider_of(BASE))
    assert not keys().stable(provider_of({**BASE, "api_key": lambda: "key-one"}))


def test_keys_of_many_texts_equal_the_single_keys() -> None:
    """The copied hash is the same hash."""
    made = keys().texts(provider_of(BASE), CALL)
    assert made.for_texts("m", ["a", "b", "ä"]) == [
        made.for_texts("m", [text])[0] for text in ("a", "b", "ä")
    ]


@pytest.mark.row("K05")
async def test_two_credentials_share_no_cache_entries(tmp_path: Path) -> None:
    """One folder, one server, two keys: nothing is shared, neither lists nor vectors."""
    async with FaultServer() as server:
        server.default(answer_openai)
        for key in ("tenant-one", "tenant-two", "tenant-one"):
            entry = {"plugin": "local", "base_url": server.base_url, "api_key": key}
            async with llmopt.AsyncClient({"providers": {"s": entry}}, cache=tmp_path) as client:
                await client.list_models("s")
                await client.embed("s/m", ["the same text"])
        sent = [request.header("authorization") for request in server.requests]
    assert sent == ["Bearer tenant-one"] * 2 + ["Bearer tenant-two"] * 2


def test_the_cache_secret_is_created_once(tmp_path: Path) -> None:
    """By the first process; private; a truncated one is replaced."""
    folder = tmp_path / "kept"
    secret = installation_secret(folder)
    assert secret is not None
    assert len(secret) == 32
    assert installation_secret(folder) == secret
    path = folder / "secret"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in folder.iterdir()] == ["secret"]
    path.write_bytes(b"cut")
    another = installation_secret(folder)
    assert another is not None
    assert another != secret
    path.chmod(0o666)
    assert installation_secret(folder) not in (None, another)
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    assert installation_secret(folder) is None
    path.unlink()
    path.mkdir()
    assert installation_secret(folder) is None


def test_concurrent_first_users_share_one_secret(tmp_path: Path) -> None:
    """All of them get the same."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(16) as pool:
        found = set(pool.map(lambda _: installation_secret(tmp_path / "kept"), range(200)))
    assert len(found) == 1
