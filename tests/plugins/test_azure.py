"""Azure's plugin: addresses, both surfaces, keys and tokens, deployments."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest

from llmopt import (
    BatchLimit,
    CatalogCall,
    ChatCall,
    ConfigError,
    Prices,
    ProviderEntry,
    Settings,
    VerdictKind,
)
from llmopt.engine.request import encode_request
from llmopt_plugin_azure._entra import scope_of
from tests.plugins.helpers import KEY, call, failure, hooks, page
from tests.plugins.helpers import settings as settings_of

ROOT = "https://r.openai.azure.com"
AZURE = hooks("azure")
DATED = {"api_version": "2024-10-21"}


def settings(base: str = ROOT, **more: Any) -> Settings:
    return settings_of("azure", base, **{"auth": "api-key", **more})


def url(where: Settings, asked: Any = None) -> str:
    """The whole URL that would be sent to."""
    return encode_request(AZURE.build_request(asked or call("emb"), where), where).url


# Addresses.


@pytest.mark.parametrize(
    "base",
    [ROOT, f"{ROOT}/openai", f"{ROOT}/openai/v1", f"{ROOT}/openai/v1/embeddings", f"{ROOT}/openai/v1/models"],
)
def test_v1_whatever_was_pasted(base: str) -> None:
    """The resource, with or without the way to the surface or an operation."""
    assert url(settings(base)) == f"{ROOT}/openai/v1/embeddings"
    assert url(settings(base), CatalogCall()) == f"{ROOT}/openai/v1/models"


@pytest.mark.parametrize(
    "base",
    [ROOT, f"{ROOT}/openai", f"{ROOT}/openai/deployments", f"{ROOT}/openai/models"],
)
def test_classic_whatever_was_pasted(base: str) -> None:
    """A dated version means the classic surface."""
    where = settings_of("azure", base, auth="api-key", **DATED)
    assert url(where) == f"{ROOT}/openai/deployments/emb/embeddings?api-version=2024-10-21"
    assert url(where, CatalogCall()) == f"{ROOT}/openai/models?api-version=2024-10-21"


@pytest.mark.parametrize("rest", ["", "/embeddings", "/chat/completions"])
def test_a_pasted_deployment_is_the_one_that_is_used(rest: str) -> None:
    """Its name need not be written twice, and the surface is clear."""
    where = settings(f"{ROOT}/openai/deployments/my%20emb{rest}")
    assert url(where) == f"{ROOT}/openai/deployments/my%20emb/embeddings?api-version=2024-10-21"


@pytest.mark.parametrize(
    ("base", "root"),
    [
        ("https://r.services.ai.azure.com", "https://r.services.ai.azure.com"),
        ("https://gw.example/azure", "https://gw.example/azure"),
        ("https://gw.example/azure/openai/v1", "https://gw.example/azure"),
        ("https://gw.example/openai-proxy", "https://gw.example/openai-proxy"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("https://openai.example/openai", "https://openai.example"),
    ],
)
def test_foundry_hosts_and_gateways(base: str, root: str) -> None:
    """A path of the gateway's own is kept."""
    assert url(settings(base)) == f"{root}/openai/v1/embeddings"


@pytest.mark.parametrize(
    ("base", "options", "path"),
    [
        (ROOT, {"surface": "v1", **DATED}, "/openai/v1/embeddings"),
        (f"{ROOT}/openai/v1", DATED, "/openai/v1/embeddings"),
        (ROOT, {"api_version": "preview"}, "/openai/v1/embeddings?api-version=preview"),
        (ROOT, {"api_version": "v1"}, "/openai/v1/embeddings?api-version=v1"),
        (ROOT, {"surface": "classic"}, "/openai/deployments/emb/embeddings?api-version=2024-10-21"),
        (
            ROOT,
            {"surface": "classic", "api_version": "2025-04-01-preview"},
            "/openai/deployments/emb/embeddings?api-version=2025-04-01-preview",
        ),
        (
            f"{ROOT}/openai/v1",
            {"surface": "classic"},
            "/openai/deployments/emb/embeddings?api-version=2024-10-21",
        ),
    ],
)
def test_which_surface(base: str, options: dict[str, str], path: str) -> None:
    """What is named counts first, then the address, then the version."""
    assert url(settings_of("azure", base, auth="api-key", **options)) == ROOT + path


def test_the_configured_deployment_is_used_whatever_the_model() -> None:
    """In the path on one surface, in the body on the other."""
    where = settings(deployment="emb/1")
    assert AZURE.build_request(call("any"), where).json["model"] == "emb/1"
    classic = settings_of("azure", ROOT, auth="api-key", deployment="emb/1", **DATED)
    assert url(classic).startswith(f"{ROOT}/openai/deployments/emb%2F1/embeddings?")


def test_chat_goes_to_the_deployment_too() -> None:
    """The same rules."""
    chat = ChatCall(model="gpt-x", messages=({"role": "user", "content": "a"},))
    assert url(settings(), chat) == f"{ROOT}/openai/v1/chat/completions"
    classic = settings_of("azure", ROOT, auth="api-key", **DATED)
    assert url(classic, chat) == f"{ROOT}/openai/deployments/gpt-x/chat/completions?api-version=2024-10-21"


@pytest.mark.parametrize(
    ("version", "asks"), [("2023-05-15", False), ("2024-02-01", False), ("2024-06-01", True)]
)
def test_old_versions_do_not_know_base64(version: str, asks: bool) -> None:
    """It came with 2024-03-01-preview."""
    body = AZURE.build_request(call(), settings_of("azure", ROOT, auth="api-key", api_version=version)).json
    assert ("encoding_format" in body) is asks


# Keys and tokens.


@pytest.mark.parametrize(
    ("kind", "options", "name", "value"),
    [
        ("key", {}, "api-key", KEY),
        ("token", {}, "authorization", f"Bearer {KEY}"),
        ("key", {"auth": "token"}, "authorization", f"Bearer {KEY}"),
        ("token", {"auth": "key"}, "api-key", KEY),
        ("token", {"auth": "entra"}, "authorization", f"Bearer {KEY}"),
    ],
)
def test_a_key_and_a_token_go_in_different_headers(kind: Any, options: Any, name: str, value: str) -> None:
    """What a function gives is a token, unless it is said to be a key."""
    where = Settings(
        provider="azure",
        base_url=ROOT,
        credential=settings().credential,
        credential_kind=kind,
        auth="api-key",
        options=options,
    )
    assert AZURE.build_request(call(), where).headers == {name: value}


@pytest.mark.parametrize(
    ("base", "scope"),
    [
        (ROOT, "https://cognitiveservices.azure.com/.default"),
        ("https://r.cognitiveservices.azure.com", "https://cognitiveservices.azure.com/.default"),
        ("https://r.services.ai.azure.com/openai/v1", "https://ai.azure.com/.default"),
        ("https://r.openai.azure.us", "https://cognitiveservices.azure.us/.default"),
        ("https://r.openai.azure.cn", "https://cognitiveservices.azure.cn/.default"),
        ("https://services.ai.azure.com.evil.example", "https://cognitiveservices.azure.com/.default"),
    ],
)
def test_the_scope_follows_the_host(base: str, scope: str) -> None:
    """And whatever it is, the setting wins."""
    assert scope_of(settings(base)) == scope
    assert scope_of(settings(base, token_scope="api://mine/.default")) == "api://mine/.default"


def entry(**options: str) -> ProviderEntry:
    return ProviderEntry(name="azure", base_url=ROOT, options=options)


def test_entra_needs_no_key_and_looks_for_none() -> None:
    """A key that lies in the environment is not meant."""
    profile = AZURE.provider_profile(entry(auth="entra"))
    assert (profile.key_required, profile.key_env) == (False, ())
    assert AZURE.provider_profile(entry()).key_env == ("AZURE_OPENAI_API_KEY", "AZURE_API_KEY")


def test_entra_beside_a_key_is_refused() -> None:
    """One of the two is a mistake."""
    both = ProviderEntry(name="azure", base_url=ROOT, api_key_env="X", options={"auth": "entra"})
    with pytest.raises(ConfigError, match=r'providers.azure: auth = "entra"'):
        AZURE.provider_profile(both)


def test_without_entra_the_configured_credential_counts() -> None:
    """The hook has nothing to give."""
    assert AZURE.credential_provider(settings()) is None
    assert AZURE.credential_provider(settings_of("azure", ROOT, auth="api-key")) is None


def entra(**more: Any) -> Settings:
    return Settings(provider="azure", base_url=ROOT, options={"auth": "entra", **more})


def test_entra_without_azure_identity_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line to try stands in the error."""
    monkeypatch.setattr("llmopt_plugin_azure._entra.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r'pip install "llmopt-plugin-azure\[entra\]"'):
        AZURE.credential_provider(entra())


class FakeIdentity(ModuleType):
    """azure-identity as far as it is used."""

    def __init__(self) -> None:
        super().__init__("azure.identity")
        self.__spec__ = ModuleSpec("azure.identity", None)
        self.made = 0
        self.asked: list[str] = []

    def DefaultAzureCredential(self) -> object:  # noqa: N802
        self.made += 1
        return self

    def get_bearer_token_provider(self, credential: object, scope: str) -> Any:
        assert credential is self

        def give() -> str:
            self.asked.append(scope)
            return f"token-{len(self.asked)}"

        return give


@pytest.fixture
def identity(monkeypatch: pytest.MonkeyPatch) -> FakeIdentity:
    fake = FakeIdentity()
    monkeypatch.setitem(sys.modules, "azure", ModuleType("azure"))
    monkeypatch.setitem(sys.modules, "azure.identity", fake)
    return fake


def test_entra_signs_in_once_and_asks_for_every_attempt(identity: FakeIdentity) -> None:
    """Nothing happens before the first token is asked for."""
    give: Any = AZURE.credential_provider(entra())
    assert identity.made == 0
    assert (give(), give()) == ("token-1", "token-2")
    assert identity.made == 1
    assert set(identity.asked) == {"https://cognitiveservices.azure.com/.default"}


def test_entra_takes_the_configured_scope(identity: FakeIdentity) -> None:
    """For clouds and gateways of one's own."""
    give: Any = AZURE.credential_provider(entra(token_scope="api://mine/.default"))
    give()
    assert identity.asked == ["api://mine/.default"]


def test_many_threads_sign_in_once(identity: FakeIdentity) -> None:
    """The first attempts all come at the same time."""
    give: Any = AZURE.credential_provider(entra())
    gate = threading.Barrier(8)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: (gate.wait(), give()), range(8)))
    assert identity.made == 1


# Lists and limits.


def test_base_models_are_described() -> None:
    """By what Azure says, and what it leaves out by the table."""
    entries = [
        {
            "id": "text-embedding-3-small",
            "object": "model",
            "created_at": 1705953180,
            "capabilities": {"embeddings": True, "chat_completion": False},
            "deprecation": {"inference": 1_900_000_000},
        },
        {"id": "gpt-4o-mini", "capabilities": {"chat_completion": True}},
        {"id": "curie", "capabilities": {"completion": True}, "deprecation": {"inference": "soon"}},
        {"id": "curie.ft-1", "model": "curie", "capabilities": None, "deprecation": None},
    ]
    small, mini, curie, tuned = page("azure", {"data": entries}, settings()).models
    assert (small.kind, small.created, small.shutdown) == ("embedding", 1705953180, "2030-03-17")
    assert (small.dimensions, small.context_length, small.prices) == (1_536, 8_192, Prices(input=0.022))
    assert set(small.known) == {"dimensions", "context_length", "prices"}
    assert (mini.context_length, mini.inputs[:2], "kind" in mini.known) == (128_000, ("text", "image"), False)
    assert (mini.kind, curie.kind, curie.shutdown, tuned.kind) == ("chat", "completion", None, "unknown")


def test_configured_deployments_are_the_list() -> None:
    """Base models cannot be asked for; deployments can."""
    where = settings(deployments=["emb", "chat"])
    assert [model.id for model in page("azure", {"data": [{"id": "gpt-4o"}]}, where).models] == [
        "emb",
        "chat",
    ]


def test_a_table_of_deployments_tells_their_models() -> None:
    """So that kind, length and limits are known."""
    where = settings(deployments={"emb": "text-embedding-3-large", "chat": "gpt-4o"})
    emb, chat = page("azure", {"data": []}, where).models
    assert (emb.name, emb.kind, emb.dimensions) == ("text-embedding-3-large", "embedding", 3_072)
    assert (chat.name, chat.kind, chat.context_length) == ("gpt-4o", "chat", 128_000)
    assert {"kind", "context_length", "prices"} <= set(chat.known)


def test_deployments_from_the_environment() -> None:
    """One variable, with commas."""
    where = settings(deployments="emb, chat")
    assert [model.id for model in page("azure", {"data": []}, where).models] == ["emb", "chat"]


@pytest.mark.parametrize("wrong", [7, True, [""], ["a", 7], {"a": ""}, {"": "b"}, "a,,b"])
def test_deployments_of_another_form_are_refused(wrong: object) -> None:
    """The message says what is expected."""
    with pytest.raises(ConfigError, match=r"providers.azure.deployments: expected a list"):
        page("azure", {"data": []}, settings(deployments=wrong))


def test_the_undocumented_list_of_deployments() -> None:
    """Asked for on request; its entries name their base models."""
    where = settings(catalog="deployments")
    assert url(where, CatalogCall()) == f"{ROOT}/openai/deployments?api-version=2023-03-15-preview"
    entries = [{"id": "emb", "model": "text-embedding-ada-002", "object": "deployment", "created_at": 5}]
    (emb,) = page("azure", {"data": entries}, where).models
    assert (emb.id, emb.name, emb.kind, emb.created) == ("emb", "text-embedding-ada-002", "embedding", 5)


def test_the_limits() -> None:
    """Whatever the deployment is called."""
    for where in (
        settings(),
        settings(deployments={"m": "text-embedding-3-small"}),
        settings(deployment="d"),
    ):
        found = AZURE.batch_limit(call(), where)
        assert found == BatchLimit(max_items=2_048, max_item_tokens=8_192, max_tokens=300_000)


# Hints.


def test_a_wrong_audience_names_the_setting() -> None:
    """And the scope in use, where a token was sent."""
    flat = {
        "statusCode": 401,
        "message": "Unauthorized. Access token is missing, invalid, audience is incorrect",
    }
    token = settings_of("azure", ROOT, auth="api-key", kind="token")
    hint = AZURE.classify_error(failure(401, flat), token).hint
    # The user's own token provider: the setting is read only where the plugin asks for tokens itself.
    assert "the token provider of providers.azure must ask for the audience" in hint
    assert "https://cognitiveservices.azure.com/.default" in hint
    verdict = AZURE.classify_error(failure(401, flat), settings())
    assert verdict.kind is VerdictKind.AUTH
    assert "providers.azure.token_scope" in verdict.hint
    assert AZURE.classify_error(failure(401, {"error": {"code": "401", "message": "no"}}), token).hint == ""


def test_two_kinds_of_404() -> None:
    """A deployment that is not there, and a path that is not there."""
    where = settings()
    gone = AZURE.classify_error(
        failure(404, {"error": {"code": "DeploymentNotFound", "message": "no"}}), where
    )
    path = AZURE.classify_error(
        failure(404, {"error": {"code": "404", "message": "Resource not found"}}), where
    )
    assert "name of a deployment" in gone.hint
    assert "providers.azure.api_version" in path.hint
