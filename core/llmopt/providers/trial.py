"""A plugin's hooks, asked what they can answer without a network, a key or a model."""

from __future__ import annotations

from typing import Final

from llmopt.config.resolve import resolve_endpoints
from llmopt.config.tree import Flags, ProviderEntry
from llmopt.errors import ConfigError, LLMOptError, PluginContractError
from llmopt.providers.hooks import ProviderHooks
from llmopt.values.calls import CatalogCall, EmbedCall
from llmopt.values.failure import Failure
from llmopt.values.http import HttpResponse
from llmopt.values.settings import Settings

_ANSWER: Final = HttpResponse(status=200, body=b"{}")
_FAILURE: Final = Failure(status=500, body=b"{}")


def try_hooks(plugin: str, hooks: ProviderHooks) -> None:
    """See that cheap hooks return what they should. What opens, starts or loads something is not asked.

    Args:
        plugin: its name.
        hooks: of that plugin.

    Raises:
        PluginContractError: one returned something else, or raised what is no error of llmopt's.
    """
    settings = _settings(plugin, hooks)
    if settings is None:
        return
    for ask in (
        lambda: hooks.batch_limit(EmbedCall(model="model", texts=("text",)), settings),
        lambda: hooks.build_request(CatalogCall(), settings),
        lambda: hooks.classify_error(_FAILURE, settings),
        lambda: hooks.rate_limits(_ANSWER, settings),
    ):
        try:
            ask()
        except PluginContractError:
            raise
        except LLMOptError:
            # There may be no such model, or no such list: that is an answer, too.
            continue


def _settings(plugin: str, hooks: ProviderHooks) -> Settings | None:
    """What hooks are given; None where only a user's configuration could tell it."""
    entry = ProviderEntry(name=plugin)
    profile = hooks.provider_profile(entry)
    try:
        (endpoint,) = resolve_endpoints(entry, profile, client_flags=Flags(), environ={})
    except ConfigError:
        return None
    except Exception as error:
        raise PluginContractError(
            f"plugin {plugin!r}: hook provider_profile returned a Profile that cannot be used "
            f"({type(error).__name__}: {error}); llmopt.testing.kit tells which field it is.",
            provider=plugin,
        ) from error
    return endpoint.settings(None)
