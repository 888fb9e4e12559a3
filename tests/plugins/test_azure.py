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
from llmopt.testing.harness import encode_request
from llmopt_plugin_azure._entra import scope_of
from tests.plugins.helpers import KEY, call, failure, hooks, page
from tests.plugins.helpers import settings as settings_of

ROOT = "https://r.openai.azure.com"
AZURE = hooks("azure")
DATED = {"api_version": "2024-10-21"}


def settings(base: str = ROOT, **more: Any) -> Settings:
    return settings_of("azure", base, **{"auth": "api-key", **more})


def url(where: Settings, asked: Any = None) -> str:
    """The URL that the request goes to."""
    return encode_request(AZURE.build_request(asked or call("emb"), where), where).url


# Addresses.


@pytest.mark.parametrize(
    "base",
    [ROOT, f"{ROOT}/openai", f"{ROOT}/openai/v1", f"{ROOT}/openai/v1/embeddings", f"{ROOT}/openai/v1/models"],
)
def test_v1_urls_from_any_form_of_base_url(base: str) -> None:
    """The resource, with or without the path of the surface or of an operation."""
    assert url(settings(base)) == f"{ROOT}/openai/v1/embeddings"
    assert url(settings(base), CatalogCall()) == f"{ROOT}/openai/v1/models"


@pytest.mark.parametrize(
    "base",
    [ROOT, f"{ROOT}/openai", f"{ROOT}/openai/deployments", f"{ROOT}/openai/models"],
)
def test_classic_urls_from_any_form_of_base_url(base: str) -> None:
    """A dated version selects the classic surface."""
    where = settings_of("azure", base, auth="api-key", **DATED)
    assert url(where) == f"{ROOT}/openai/deployments/emb/embeddings?api-version=2024-10-21"
    assert url(where, CatalogCall()) == f"{ROOT}/openai/models?api-version=2024-10-21"


@pytest.mark.parametrize("rest", ["", "/embeddings", "/chat/completions"])
def test_a_deployment_in_the_base_url_is_used(rest: str) -> None:
    """It need not be configured again, and it selects the surface."""
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
    """The path of a gateway stays."""
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
def test_selection_of_the_surface(base: str, options: dict[str, str], path: str) -> None:
    """By the option, else by the base URL, else by the version."""
    assert url(settings_of("azure", base, auth="api-key", **options)) == ROOT + path


def test_a_configured_deployment_replaces_the_model() -> None:
    """In the path on one surface, in the body on the other."""
    where = settings(deployment="emb/1")
    assert AZURE.build_request(call("any"), where).json["model"] == "emb/1"
    classic = settings_of("azure", ROOT, auth="api-key", deployment="emb/1", **DATED)
    assert url(classic).startswith(f"{ROOT}/openai/deployments/emb%2F1/embeddings?")


def test_a_chat_uses_the_deployment_too() -> None:
    chat = ChatCall(model="gpt-x", messages=({"role": "user", "content": "a"},))
    assert url(settings(), chat) == f"{ROOT}/openai/v1/chat/completions"
    classic = settings_of("azure", ROOT, auth="api-key", **DATED)
    assert url(classic, chat) == f"{ROOT}/openai/deployments/gpt-x/chat/completions?api-version=2024-10-21"


@pytest.mark.parametrize(
    ("version", "asks"), [("2023-05-15", False), ("2024-02-01", False), ("2024-06-01", True)]
)
def test_no_base64_with_old_versions(version: str, asks: bool) -> None:
    """Azure has it since 2024-03-01-preview."""
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
def test_a_key_and_a_token_use_different_headers(kind: Any, options: Any, name: str, value: str) -> None:
    """The result of a function is a token, unless the configuration says that it is a key."""
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
def test_the_scope_depends_on_the_host(base: str, scope: str) -> None:
    """The configured scope overrides it."""
    assert scope_of(settings(base)) == scope
    assert scope_of(settings(base, token_scope="api://mine/.default")) == "api://mine/.default"


def entry(**options: str) -> ProviderEntry:
    return ProviderEntry(name="azure", base_url=ROOT, options=options)


def test_entra_does_not_use_a_key_of_the_environment() -> None:
    profile = AZURE.provider_profile(entry(auth="entra"))
    assert (profile.key_required, profile.key_env) == (False, ())
    assert AZURE.provider_profile(entry()).key_env == ("AZURE_OPENAI_API_KEY", "AZURE_API_KEY")


def test_entra_with_a_key_is_an_error() -> None:
    """One of the two is a mistake."""
    both = ProviderEntry(name="azure", base_url=ROOT, api_key_env="X", options={"auth": "entra"})
    with pytest.raises(ConfigError, match=r'providers.azure: auth = "entra"'):
        AZURE.provider_profile(both)


def test_without_entra_the_configured_credential_is_used() -> None:
    """The hook returns none."""
    assert AZURE.credential_provider(settings()) is None
    assert AZURE.credential_provider(settings_of("azure", ROOT, auth="api-key")) is None


def entra(**more: Any) -> Settings:
    return Settings(provider="azure", base_url=ROOT, options={"auth": "entra", **more})


def test_entra_without_azure_identity_is_an_error_that_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the command that installs it."""
    monkeypatch.setattr("llmopt_plugin_azure._entra.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r'pip install "llmopt-plugin-azure\[entra\]"'):
        AZURE.credential_provider(entra())


class FakeIdentity(ModuleType):
    """A fake of the part of azure-identity that the plugin uses."""

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


def test_entra_signs_in_once_and_gets_a_token_for_each_attempt(identity: FakeIdentity) -> None:
    """It signs in when the first token is needed."""
    give: Any = AZURE.credential_provider(entra())
    assert identity.made == 0
    assert (give(), give()) == ("token-1", "token-2")
    assert identity.made == 1
    assert set(identity.asked) == {"https://cognitiveservices.azure.com/.default"}


def test_entra_uses_the_configured_scope(identity: FakeIdentity) -> None:
    """For other clouds and gateways."""
    give: Any = AZURE.credential_provider(entra(token_scope="api://mine/.default"))
    give()
    assert identity.asked == ["api://mine/.default"]


def test_many_threads_sign_in_once(identity: FakeIdentity) -> None:
    """Even if their first attempts are concurrent."""
    give: Any = AZURE.credential_provider(entra())
    gate = threading.Barrier(8)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: (gate.wait(), give()), range(8)))
    assert identity.made == 1


# Lists and limits.


def test_base_models_have_the_data_of_azure_and_of_the_table() -> None:
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


def test_configured_deployments_are_the_models() -> None:
    """A request needs a deployment, not a base model."""
    where = settings(deployments=["emb", "chat"])
    assert [model.id for model in page("azure", {"data": [{"id": "gpt-4o"}]}, where).models] == [
        "emb",
        "chat",
    ]


def test_a_table_of_deployments_names_their_base_models() -> None:
    """So kind, dimensions and limits are known."""
    where = settings(deployments={"emb": "text-embedding-3-large", "chat": "gpt-4o"})
    emb, chat = page("azure", {"data": []}, where).models
    assert (emb.name, emb.kind, emb.dimensions) == ("text-embedding-3-large", "embedding", 3_072)
    assert (chat.name, chat.kind, chat.context_length) == ("gpt-4o", "chat", 128_000)
    assert {"kind", "context_length", "prices"} <= set(chat.known)


def test_deployments_from_the_environment() -> None:
    """One variable, separated by commas."""
    where = settings(deployments="emb, chat")
    assert [model.id for model in page("azure", {"data": []}, where).models] == ["emb", "chat"]


@pytest.mark.parametrize("wrong", [7, True, [""], ["a", 7], {"a": ""}, {"": "b"}, "a,,b"])
def test_deployments_of_another_type_are_an_error(wrong: object) -> None:
    """The message has the expected type."""
    with pytest.raises(ConfigError, match=r"providers.azure.deployments: expected a list"):
        page("azure", {"data": []}, settings(deployments=wrong))


def test_the_undocumented_list_of_deployments() -> None:
    """Only if configured; its entries name their base models."""
    where = settings(catalog="deployments")
    assert url(where, CatalogCall()) == f"{ROOT}/openai/deployments?api-version=2023-03-15-preview"
    entries = [{"id": "emb", "model": "text-embedding-ada-002", "object": "deployment", "created_at": 5}]
    (emb,) = page("azure", {"data": entries}, where).models
    assert (emb.id, emb.name, emb.kind, emb.created) == ("emb", "text-embedding-ada-002", "embedding", 5)


def test_batch_limits() -> None:
    """They do not depend on the deployment's name."""
    for where in (
        settings(),
        settings(deployments={"m": "text-embedding-3-small"}),
        settings(deployment="d"),
    ):
        result = AZURE.batch_limit(call(), where)
        assert result == BatchLimit(max_items=2_048, max_item_tokens=8_192, max_tokens=300_000)


# Hints.


def test_the_error_of_a_wrong_audience_names_the_option() -> None:
    """And the scope in use, if a token was sent."""
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


def test_a_missing_deployment_and_a_missing_path_are_two_errors() -> None:
    where = settings()
    gone = AZURE.classify_error(
        failure(404, {"error": {"code": "DeploymentNotFound", "message": "no"}}), where
    )
    path = AZURE.classify_error(
        failure(404, {"error": {"code": "404", "message": "Resource not found"}}), where
    )
    assert "name of a deployment" in gone.hint
    assert "providers.azure.api_version" in path.hint
