"""All providers that can be asked: configured entries and installed plugins, each made when first used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from types import ModuleType
from typing import Any, Final

from llmopt.config.resolve import Endpoint, resolve_endpoints
from llmopt.config.schema import Config, Flags, ProviderEntry
from llmopt.errors import InvalidInput, LLMOptError, UnknownProvider
from llmopt.providers.discovery import PROVIDER_NAME, InstalledPlugin, discover_plugins
from llmopt.providers.hooks import ProviderHooks

# One provider entry: its plugin's hooks and its endpoints.


class Provider:
    """A configured provider, ready to be asked.

    Attributes:
        name: name of the entry.
        plugin: name of the plugin that serves it.
        hooks: the plugin's hooks.
        endpoints: where requests go; at least one.
    """

    def __init__(self, name: str, plugin: str, hooks: ProviderHooks, endpoints: tuple[Endpoint, ...]) -> None:
        self.name: Final = name
        self.plugin: Final = plugin
        self.hooks: Final = hooks
        self.endpoints: Final = endpoints

    def __repr__(self) -> str:
        return f"Provider({self.name!r}, plugin={self.plugin!r}, endpoints={len(self.endpoints)})"


class Registry:
    """Finds providers by the name of their entry.

    Args:
        config: the configuration.
        wrappers: the user's plugins, called around every provider's.
        environ: environment variables.
    """

    def __init__(self, config: Config, wrappers: Sequence[object], environ: Mapping[str, str]) -> None:
        self._config: Final = config
        self._wrappers: Final = tuple(wrappers)
        self._environ: Final = environ
        self._providers: Final[dict[str, Provider]] = {}
        self._hooks: Final[dict[str, ProviderHooks]] = {}
        self._modules: Final[dict[int, tuple[object, ProviderHooks]]] = {}
        self._variables: Final[dict[str, tuple[str, ...]]] = {}
        self._installed: Mapping[str, InstalledPlugin] | None = None
        self._identities: Final[dict[str, tuple[str, ...]]] = {}

    @property
    def installed(self) -> Mapping[str, InstalledPlugin]:
        """Installed plugins by name, read from metadata once."""
        if self._installed is None:
            self._installed = discover_plugins()
        return self._installed

    def resolve(self, reference: str) -> tuple[Provider, str]:
        """The provider and the model that ``"<provider>/<model>"`` means.

        Raises:
            InvalidInput: the reference has another form.
            UnknownProvider: nothing serves that name.
        """
        if not isinstance(reference, str):
            raise InvalidInput(
                f"the model must be text like 'local/default', not {type(reference).__name__}."
            )
        name, slash, model = reference.partition("/")
        if not slash or not model or not name:
            raise InvalidInput(
                f"the model {reference!r:.80} must have the form 'provider/model', such as 'local/default'."
            )
        return self.get(name), model

    def get(self, name: str) -> Provider:
        """The provider of an entry, made at the first call.

        Raises:
            UnknownProvider, PluginError, ConfigError: it cannot be made; the message says why.
        """
        found = self._providers.get(name)
        if found is None:
            found = self._providers[name] = self._make(name)
        return found

    def get_created(self, name: str) -> Provider | None:
        """The provider of an entry, if it was made before. Safe from any thread."""
        return self._providers.get(name)

    def _make(self, name: str) -> Provider:
        entry = self._entry(name)
        hooks = self._hooks_of(entry.plugin_name, name)
        endpoints = resolve_endpoints(
            entry,
            hooks.provider_profile,
            client_flags=Flags().overridden(self._config.flags),
            environ=self._environ,
        )
        return Provider(name, entry.plugin_name, hooks, endpoints)

    def _entry(self, name: str) -> ProviderEntry:
        if not PROVIDER_NAME.match(name):
            raise UnknownProvider(
                f"{name!r:.80} cannot be a provider: names have small letters, digits, '-' and '_'."
            )
        return self._config.entry(name)

    def _hooks_of(self, plugin: str, name: str) -> ProviderHooks:
        if plugin not in self._hooks:
            if plugin not in self.installed:
                raise self._unknown(plugin, name)
            self._hooks[plugin] = self._loaded(self.installed[plugin])
        return self._hooks[plugin]

    def _loaded(self, plugin: InstalledPlugin) -> ProviderHooks:
        """A plugin's hooks; a general plugin is taken up once for all its names."""
        module = plugin.load()
        if id(module) in self._modules:
            return self._modules[id(module)][1].for_provider(plugin.name)
        made = ProviderHooks(plugin.name, module, self._wrappers)
        # The module is kept with them, so that its id stays its own.
        self._modules[id(module)] = (module, made)
        return made

    def _unknown(self, plugin: str, name: str) -> UnknownProvider:
        served = {key for key, entry in self._config.providers.items() if entry.plugin_name in self.installed}
        general = any(each.fallback for each in self.installed.values())
        near = get_close_matches(name, {*self.installed, *served}, n=1)
        advice = f"did you mean {near[0]!r}? If not, " if near else ""
        return UnknownProvider(
            f"no plugin {plugin!r} for provider {name!r} is installed ({self._have(served)}); "
            f"{advice}try: pip install llmopt-plugin-{plugin.removeprefix('llmopt-plugin-')}"
            + ("" if general else "; many providers come with llmopt-plugin-compatible"),
            provider=name,
        )

    def identity(self, provider: Provider) -> tuple[str, ...]:
        """What makes a provider's requests and reads its answers: distributions with versions, and wrappers."""
        name = provider.plugin
        if name not in self._identities:
            # Read from disk, which takes too long to be done for each of many entries.
            plugin = self.installed.get(name)
            own = plugin.distributions if plugin is not None else ()
            self._identities[name] = (*own, *map(_named, self._wrappers))
        return self._identities[name]

    def _have(self, served: set[str]) -> str:
        """What there is, in few words: a general plugin's names are counted."""
        own = sorted(served | {name for name, plugin in self.installed.items() if not plugin.fallback})
        more = len(self.installed) + len(served - set(self.installed)) - len(own)
        if more:
            own.append(f"{more} more, which llmopt plugins lists")
        return f"there are {', '.join(own)}" if own else "none is installed"

    def names(self) -> tuple[str, ...]:
        """Entries that are configured, then installed plugins that need no key or have theirs."""
        configured = tuple(self._config.providers)
        served = {entry.plugin_name for entry in self._config.providers.values()}
        extra = [name for name in self.installed if name not in {*configured, *served} and self._usable(name)]
        return (*configured, *extra)

    def _usable(self, name: str) -> bool:
        if self.installed[name].fallback and not self._has_key(name):
            # Most of a general plugin's many names are nobody's here, and cost no more than a look.
            return False
        try:
            return all(map(_ready, self.get(name).endpoints))
        except LLMOptError:
            # A plugin that does not load, or that lacks its address, was not asked for by anyone.
            return False

    def _has_key(self, name: str) -> bool:
        if name not in self._variables:
            try:
                hooks = self._hooks_of(name, name)
                self._variables[name] = hooks.provider_profile(ProviderEntry(name=name)).key_env
            except LLMOptError:
                self._variables[name] = ()
        return any(map(self._environ.get, self._variables[name]))


def _named(wrapper: object) -> str:
    kind: Any = wrapper if isinstance(wrapper, ModuleType) else type(wrapper)
    return f"{getattr(kind, '__module__', '')} {kind.__name__}"


def _ready(endpoint: Endpoint) -> bool:
    return endpoint.discovered and not endpoint.credential.problem
