"""llmopt: embeddings, chats and model lists from any LLM provider, with batching, rate limits, retries and a cache.

>>> import llmopt
>>> with llmopt.Client() as client:
...     client.embed("local/default", ["a text", "another"]).vectors.shape
(2, 256)

Each name is imported when it is first used, so that ``import llmopt`` is fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from llmopt import compatible as compatible
    from llmopt.cache.disk import DiskStore as DiskStore
    from llmopt.cache.store import CacheItem as CacheItem
    from llmopt.cache.store import CacheSize as CacheSize
    from llmopt.cache.store import CacheStore as CacheStore
    from llmopt.cache.store import MemoryStore as MemoryStore
    from llmopt.client.async_client import AsyncClient as AsyncClient
    from llmopt.client.sync_client import Client as Client
    from llmopt.config.schema import Config as Config
    from llmopt.config.schema import Flags as Flags
    from llmopt.config.schema import ProviderEntry as ProviderEntry
    from llmopt.errors import Attempt as Attempt
    from llmopt.errors import AttemptTimeout as AttemptTimeout
    from llmopt.errors import AuthError as AuthError
    from llmopt.errors import BadRequest as BadRequest
    from llmopt.errors import CircuitOpen as CircuitOpen
    from llmopt.errors import ClientClosed as ClientClosed
    from llmopt.errors import ConfigError as ConfigError
    from llmopt.errors import ConnectFailed as ConnectFailed
    from llmopt.errors import ConnectionLost as ConnectionLost
    from llmopt.errors import ContentFiltered as ContentFiltered
    from llmopt.errors import CostNeverFits as CostNeverFits
    from llmopt.errors import DeadlineExceeded as DeadlineExceeded
    from llmopt.errors import InvalidInput as InvalidInput
    from llmopt.errors import InvalidResponse as InvalidResponse
    from llmopt.errors import ItemRejected as ItemRejected
    from llmopt.errors import ItemTooLong as ItemTooLong
    from llmopt.errors import LLMOptError as LLMOptError
    from llmopt.errors import LocalRejection as LocalRejection
    from llmopt.errors import NotCached as NotCached
    from llmopt.errors import NotFound as NotFound
    from llmopt.errors import OutOfResources as OutOfResources
    from llmopt.errors import Overloaded as Overloaded
    from llmopt.errors import PartialFailure as PartialFailure
    from llmopt.errors import PermissionDenied as PermissionDenied
    from llmopt.errors import PluginConflict as PluginConflict
    from llmopt.errors import PluginContractError as PluginContractError
    from llmopt.errors import PluginError as PluginError
    from llmopt.errors import PluginLoadError as PluginLoadError
    from llmopt.errors import PoolTimeout as PoolTimeout
    from llmopt.errors import ProviderError as ProviderError
    from llmopt.errors import QueueFull as QueueFull
    from llmopt.errors import QuotaExhausted as QuotaExhausted
    from llmopt.errors import RateLimited as RateLimited
    from llmopt.errors import RequestTimeout as RequestTimeout
    from llmopt.errors import RequestTooLarge as RequestTooLarge
    from llmopt.errors import ServerError as ServerError
    from llmopt.errors import SharedStateUnavailable as SharedStateUnavailable
    from llmopt.errors import StreamError as StreamError
    from llmopt.errors import StreamIdle as StreamIdle
    from llmopt.errors import StreamInterrupted as StreamInterrupted
    from llmopt.errors import TransportError as TransportError
    from llmopt.errors import UnexpectedStatus as UnexpectedStatus
    from llmopt.errors import UnknownProvider as UnknownProvider
    from llmopt.hookspecs import hookimpl as hookimpl
    from llmopt.known_models import ModelTable as ModelTable
    from llmopt.known_models import package_data as package_data
    from llmopt.shared.state import Reservation as Reservation
    from llmopt.shared.state import SharedCost as SharedCost
    from llmopt.shared.state import SharedRate as SharedRate
    from llmopt.shared.state import SharedRates as SharedRates
    from llmopt.shared.state import SharedRecord as SharedRecord
    from llmopt.shared.state import SharedState as SharedState
    from llmopt.values.calls import BatchLimit as BatchLimit
    from llmopt.values.calls import Call as Call
    from llmopt.values.calls import CatalogCall as CatalogCall
    from llmopt.values.calls import ChatCall as ChatCall
    from llmopt.values.calls import EmbedCall as EmbedCall
    from llmopt.values.calls import RateLimit as RateLimit
    from llmopt.values.calls import RateLimits as RateLimits
    from llmopt.values.calls import RequestCost as RequestCost
    from llmopt.values.calls import Settings as Settings
    from llmopt.values.catalog import Catalog as Catalog
    from llmopt.values.catalog import CatalogPage as CatalogPage
    from llmopt.values.catalog import Model as Model
    from llmopt.values.catalog import Prices as Prices
    from llmopt.values.chat import ChatEvent as ChatEvent
    from llmopt.values.chat import ChatReply as ChatReply
    from llmopt.values.chat import Message as Message
    from llmopt.values.chat import ServerEvent as ServerEvent
    from llmopt.values.chat import ToolCall as ToolCall
    from llmopt.values.chat import ToolCallPart as ToolCallPart
    from llmopt.values.embeddings import EmbeddedPart as EmbeddedPart
    from llmopt.values.embeddings import EmbeddedRows as EmbeddedRows
    from llmopt.values.embeddings import Embeddings as Embeddings
    from llmopt.values.embeddings import Usage as Usage
    from llmopt.values.error_body import ErrorBody as ErrorBody
    from llmopt.values.http import AttemptInfo as AttemptInfo
    from llmopt.values.http import Failure as Failure
    from llmopt.values.http import HttpRequest as HttpRequest
    from llmopt.values.http import HttpResponse as HttpResponse
    from llmopt.values.http import Verdict as Verdict
    from llmopt.values.http import VerdictKind as VerdictKind
    from llmopt.values.profile import Option as Option
    from llmopt.values.profile import Profile as Profile
    from llmopt.values.profile import Timeouts as Timeouts
    from llmopt.values.secret import Secret as Secret
else:
    # A module with __getattr__ accepts every name, so type checkers do not see it and still report misspelled ones.
    from llmopt._exports import MODULES

    __all__ = [*MODULES, "__version__"]  # noqa: PLE0604 - the names come from a table

    def __getattr__(name: str) -> object:
        """Import the module of a public name, and cache the value."""
        if name not in MODULES:
            raise AttributeError(f"module 'llmopt' has no attribute {name!r}")
        from importlib import import_module

        module = import_module(MODULES[name])
        value = getattr(module, name, module)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return __all__
