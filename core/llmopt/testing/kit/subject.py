"""The plugin under examination, and everything a check needs to ask it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cached_property
from types import ModuleType
from typing import Any, Final, Literal

from attrs import evolve

from llmopt.config.endpoint import Endpoint
from llmopt.config.resolve import resolve_endpoints
from llmopt.config.template import filled, gaps
from llmopt.config.tree import Flags, ProviderEntry
from llmopt.errors import LLMOptError
from llmopt.providers.hooks import HOOK_NAMES, ProviderHooks
from llmopt.testing.dialect import Dialect
from llmopt.testing.kit.check import NotApplicable
from llmopt.testing.kit.sources import Sources
from llmopt.testing.kit.texts import TEXTS
from llmopt.testing.samples import Samples
from llmopt.values.calls import EmbedCall
from llmopt.values.http import HttpResponse
from llmopt.values.profile import Profile
from llmopt.values.secret import Secret
from llmopt.values.settings import Settings

KEY: Final = "canary-key-of-the-kit"
"""Stands for the user's key; must be seen in headers and nowhere else."""
TOKEN: Final = "canary-token-of-the-kit"  # noqa: S105 - this is none
"""Stands for what a token provider gives."""
SOMEWHERE: Final = "https://server.llmopt-kit.example/v1"
"""Where a server is pretended to be when the profile names no place."""
CONFIGURED: Final = {"x-kit-configured": "by the user"}
"""A header that the user's configuration asks for."""
RECEIVED: Final = 1_790_000_000.0


class Subject:
    """A plugin, and how to ask it.

    Args:
        plugin: its module, or any object with its hooks.
        name: the provider's name; by default that of its entry point, else taken from the module's name.
        samples: what is special about it.
    """

    def __init__(self, plugin: object, *, name: str = "", samples: Samples | None = None) -> None:
        self.plugin: Final = plugin
        self.sources: Final = Sources(plugin)
        self.name: Final = name or self.sources.provider_name
        self.samples: Final = samples if samples is not None else Samples()
        self.dialect: Final = Dialect(self.samples)
        self.findings: Final[dict[str, Any]] = {}

    @property
    def module(self) -> ModuleType:
        """The plugin's module.

        Raises:
            NotApplicable: it is another kind of object.
        """
        if not isinstance(self.plugin, ModuleType):
            raise NotApplicable("the plugin is an object, not a module")
        return self.plugin

    @cached_property
    def loaded(self) -> ProviderHooks:
        """The plugin's hooks, behind the core's checked face; raises what the core would."""
        return ProviderHooks(self.name, self.plugin)

    @property
    def hooks(self) -> ProviderHooks:
        """The same for checks that come after.

        Raises:
            NotApplicable: the hooks do not load, which the checks of "discovery" report.
        """
        try:
            found = self.loaded
        except LLMOptError:
            raise NotApplicable("its hooks do not load; see the checks of discovery") from None
        if any(inspect.iscoroutinefunction(getattr(self.plugin, name, None)) for name in HOOK_NAMES):
            raise NotApplicable("its hooks are no plain functions; see discovery.plain-functions")
        return found

    def implements(self, hook: str) -> bool:
        """Whether the plugin has an implementation of its own."""
        return hasattr(self.plugin, hook)

    @cached_property
    def entry(self) -> ProviderEntry:
        """The plugin's entry in a configuration, with a key."""
        return self.entry_with()

    def entry_with(self, **changes: Any) -> ProviderEntry:
        """The plugin's entry in a configuration, with something else about it."""
        url = self.base_url or None
        entry = ProviderEntry(name=self.name, base_url=url, api_key=Secret(KEY), options=self.options)
        return evolve(entry, **changes)

    @cached_property
    def options(self) -> Mapping[str, Any]:
        """The plugin's own configuration keys: the samples', and something for each gap in its base URL."""
        try:
            url = self.hooks.provider_profile(self.bare_entry).base_url
        except LLMOptError:
            url = None
        return {**dict.fromkeys(gaps(url if isinstance(url, str) else None), "kit"), **self.samples.options}

    @cached_property
    def base_url(self) -> str:
        """Where the server is pretended to be, "" for an engine inside the process."""
        if self.samples.base_url is not None:
            return self.samples.base_url
        try:
            bare = self.hooks.provider_profile(self.bare_entry)
            url = filled(bare, self.options, path="the profile").base_url or SOMEWHERE
            there = self.hooks.provider_profile(evolve(self.bare_entry, base_url=url))
        except LLMOptError:
            raise NotApplicable("its provider_profile does not work; see profile.any-entry") from None
        return "" if there.in_process else url

    @property
    def bare_entry(self) -> ProviderEntry:
        """The plugin's entry without a key and without a base URL."""
        return ProviderEntry(name=self.name, options=self.samples.options)

    @cached_property
    def profile(self) -> Profile:
        """Its profile for the entry."""
        return self.hooks.provider_profile(self.entry)

    @cached_property
    def endpoint(self) -> Endpoint:
        """The entry's endpoint, as the core resolves it, without any environment.

        Raises:
            NotApplicable: it comes to none, which "profile.resolves" reports.
        """
        try:
            return self.endpoint_of(self.entry)
        except LLMOptError:
            raise NotApplicable("its entry comes to no endpoint; see profile.resolves") from None

    def endpoint_of(self, entry: ProviderEntry) -> Endpoint:
        """The endpoint that an entry comes to."""
        hooks = self.hooks
        return resolve_endpoints(entry, hooks.provider_profile, client_flags=Flags(), environ={})[0]

    def settings(
        self,
        *,
        key: str | None = KEY,
        kind: Literal["key", "token"] = "key",
        headers: Mapping[str, str] = CONFIGURED,
    ) -> Settings:
        """What a hook is told of the endpoint, made anew with each call."""
        secret = None if key is None else Secret(key)
        found = self.endpoint.settings(secret)
        return evolve(
            found, credential_kind=kind, headers={**found.headers, **headers}, options=dict(found.options)
        )

    def embed_call(self, count: int = len(TEXTS), **changes: Any) -> EmbedCall:
        """A call with some texts, no more of them than the plugin's own limit allows."""
        most = self.limit or len(TEXTS)
        call = EmbedCall(model=self.samples.model, texts=TEXTS[: min(count, most)])
        return evolve(call, **changes)

    @cached_property
    def limit(self) -> int | None:
        """Most items in a request, None when the plugin knows no limit or cannot say."""
        try:
            found = self.hooks.batch_limit(EmbedCall(model=self.samples.model), self.settings())
        except LLMOptError:
            return None
        most = found.max_items
        return most if type(most) is int and most > 0 else None

    def without(self, operation: Literal["embeddings", "catalog", "chat"]) -> None:
        """Leave the running check when the provider does not have an operation.

        Raises:
            NotApplicable: it does not.
        """
        if operation in self.samples.without:
            raise NotApplicable(f"the samples say that the provider has no {operation}")

    @staticmethod
    def answer(
        body: bytes,
        *,
        status: int = 200,
        kind: str = "application/json",
        headers: Mapping[str, str] | None = None,
    ) -> HttpResponse:
        """An answer of the server's, made anew with each call."""
        return HttpResponse(
            status=status, headers={"content-type": kind, **(headers or {})}, body=body, received=RECEIVED
        )
