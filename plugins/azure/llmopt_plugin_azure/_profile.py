"""The profile of Azure OpenAI, and the options that it adds to a provider entry."""

from __future__ import annotations

from typing import Final

from attrs import evolve

from llmopt import ConfigError, Option, Profile, ProviderEntry, Timeouts

_BY_KEY: Final = Profile(
    base_url_env=("AZURE_OPENAI_ENDPOINT",),
    key_env=("AZURE_OPENAI_API_KEY", "AZURE_API_KEY"),
    own_hosts=(
        "*.openai.azure.com",
        "*.services.ai.azure.com",
        "*.cognitiveservices.azure.com",
        "*.openai.azure.us",
        "*.openai.azure.cn",
    ),
    auth="api-key",
    timeouts=Timeouts(connect=10, read=90, read_large=180, catalog=15, pool=5),
    max_retries=3,
    max_concurrency=32,
    rpm=300,
    stream_end="done",
    operations=frozenset({"embeddings", "chat", "catalog"}),
    reads_base_url=True,
    options=(
        Option(
            name="surface",
            choices=("classic", "v1"),
            help="which of the two APIs; by default as base_url and api_version say, else v1",
        ),
        Option(
            name="api_version",
            env=("OPENAI_API_VERSION", "AZURE_OPENAI_API_VERSION"),
            help="a date such as 2024-10-21 means the classic API; v1 or preview the v1 API",
        ),
        Option(name="deployment", help="deployment to use; the model's name unless given"),
        Option(
            name="deployments",
            type=object,
            help="deployments, given as the list of models: names, or a table of names and base models",
        ),
        Option(
            name="catalog",
            choices=("models", "deployments"),
            help="which list to ask for: base models, or (undocumented by Azure) deployments",
        ),
        Option(
            name="auth",
            choices=("key", "token", "entra"),
            help="what api_key is: a key or a token; entra signs in by azure-identity instead",
        ),
        Option(name="token_scope", help="scope of Entra tokens; by default as the host demands"),
    ),
)
# Without names of variables: a key that lies in the environment is not meant.
_BY_ENTRA: Final = evolve(_BY_KEY, key_env=(), key_required=False)


def profile_of(entry: ProviderEntry) -> Profile:
    """Keys, timeouts and a conservative rate; the base URL is that of the user's resource.

    Raises:
        ConfigError: the entry holds a key and asks for another way to sign in.
    """
    if entry.options.get("auth") != "entra":
        return _BY_KEY
    if entry.api_key is not None or entry.api_key_env is not None:
        raise ConfigError(
            f'providers.{entry.name}: auth = "entra" signs in without a key; leave api_key and '
            "api_key_env out, or leave auth out."
        )
    return _BY_ENTRA
