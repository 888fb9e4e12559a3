"""The providers of a client: configured entries and installed plugins, each created at first use.

It reads the metadata of distributions from disk, imports plugins and calls their hook `provider_profile`, or the user's
wrappers of it, each at first use, in the thread of the caller and without awaiting. `Registry.names` does so for every
installed plugin that no entry uses. For an unknown provider it reads llmopt's ``packages.toml``. No network; the
environment is passed in and read at these moments. All calls of a client share it, also from several threads, without
a lock: two threads may each make the hooks of the same plugin or the same provider, and the later object is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, Final

from attrs import field, frozen

from llmopt.config.resolve import Endpoint, resolve_endpoints
from llmopt.config.schema import Config, Flags, ProviderEntry
from llmopt.errors import InvalidInput, LLMOptError, UnknownProvider
from llmopt.providers.discovery import PROVIDER_NAME, InstalledPlugin, discover_plugins, how_to_install
from llmopt.providers.hooks import ProviderHooks
from llmopt.values.calls import Operation

OPERATION_NAMES: Final[Mapping[str, str]] = {"catalog": "a list of models"}
"""What messages call the operations whose names are not plain words."""


@frozen(eq=False, repr=False)
class Provider:
    """A provider entry with the hooks of its plugin and its resolved endpoints.

    Attributes:
        name: name of the entry.
        plugin: name of the plugin that serves it.
        hooks: the plugin's hooks.
        endpoints: at least one.
        operations: what one of them at least can be asked for; None if that is not known.
    """

    name: str
    plugin: str
    hooks: ProviderHooks
    endpoints: tuple[Endpoint, ...]
    operations: frozenset[str] | None = field(init=False)

    @operations.default
    def _(self) -> frozenset[str] | None:
        told = [each.operations for each in self.endpoints if each.operations is not None]
        return frozenset().union(*told) if len(told) == len(self.endpoints) else None

    def lacks(self, operation: Operation) -> InvalidInput:
        """The error for a call of an operation that no endpoint has."""
        own = " and ".join(OPERATION_NAMES.get(each, each) for each in sorted(self.operations or ()))
        asked = OPERATION_NAMES.get(operation, operation).removeprefix("a ")
        todo = "use the model of another provider, or set base_url to a server that has it"
        if operation == "catalog":
            todo = "its documentation names its models"
        return InvalidInput(
            f"the provider {self.name!r} has no {asked}{own and f', only {own}'}; {todo}.",
            provider=self.name,
        )

    def __repr__(self) -> str:
        return f"Provider({self.name!r}, plugin={self.plugin!r}, endpoints={len(self.endpoints)})"


class Registry:
    """Creates providers by name and keeps them.

    Args:
        config: the configuration.
        wrappers: plugins of the user, called before or around every provider's plugin.
        environ: the environment variables.
    """

    def __init__(self, config: Config, wrappers: Sequence[object], environ: Mapping[str, str]) -> None:
        self._config: Final = config
        self._wrappers: Final = tuple(wrappers)
        self._environ: Final = environ
        self._providers: Final[dict[str, Provider]] = {}
        self._hooks: Final[dict[str, ProviderHooks]] = {}
        # By id, because a plugin may be any object, also one that is not hashable.
        self._modules: Final[dict[int, tuple[object, ProviderHooks]]] = {}
        self._variables: Final[dict[str, tuple[str, ...]]] = {}
        self._installed: Mapping[str, InstalledPlugin] | None = None

    @property
    def installed(self) -> Mapping[str, InstalledPlugin]:
        """Installed plugins by provider name; package metadata is read once."""
        if self._installed is None:
            self._installed = discover_plugins()
        return self._installed

    def resolve(self, reference: str, operation: Operation) -> tuple[Provider, str]:
        """Split a model reference ``"<provider>/<model>"`` and return the provider and the model.

        Raises:
            InvalidInput: the reference has another form, or the provider does not have the operation.
            UnknownProvider: no entry and no plugin has that name.
        """
        if not isinstance(reference, str):
            raise InvalidInput(
                f"the model must be text like 'local/default', not {type(reference).__name__}."
            )
        # At the first slash only: names of models may contain more, such as "meta-llama/Llama-3".
        name, slash, model = reference.partition("/")
        if not slash or not model or not name:
            raise InvalidInput(
                f"the model {reference!r:.80} must have the form 'provider/model', such as 'local/default'."
            )
        provider = self.get(name)
        if provider.operations is not None and operation not in provider.operations:
            raise provider.lacks(operation)
        return provider, model

    def get(self, name: str) -> Provider:
        """The provider of an entry, created at the first call.

        Raises:
            UnknownProvider, PluginError, ConfigError: it cannot be created; the message says why.
        """
        provider = self._providers.get(name)
        if provider is None:
            provider = self._providers[name] = self._create(name)
        return provider

    def get_created(self, name: str) -> Provider | None:
        """The provider of an entry, None if it was not created yet. Safe to call from any thread."""
        return self._providers.get(name)

    def _create(self, name: str) -> Provider:
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
                f"{name!r:.80} is not a valid provider name; names have lower-case letters, digits, '-' and '_'."
            )
        return self._config.entry(name)

    def _hooks_of(self, plugin: str, name: str) -> ProviderHooks:
        if plugin not in self._hooks:
            if plugin not in self.installed:
                raise self._unknown(plugin, name)
            self._hooks[plugin] = self._load_hooks(self.installed[plugin])
        return self._hooks[plugin]

    def _load_hooks(self, plugin: InstalledPlugin) -> ProviderHooks:
        """The hooks of a plugin; a general plugin is registered once for all its names."""
        module = plugin.load()
        if id(module) in self._modules:
            return self._modules[id(module)][1].for_provider(plugin.name)
        hooks = ProviderHooks(plugin.name, module, self._wrappers)
        # Keep a reference to the module, so that no other object can get the same id.
        self._modules[id(module)] = (module, hooks)
        return hooks

    def _unknown(self, plugin: str, name: str) -> UnknownProvider:
        served = {key for key, entry in self._config.providers.items() if entry.plugin_name in self.installed}
        return UnknownProvider(
            f"no plugin {plugin!r} for provider {name!r} is installed ({self._installed_names(served)}); "
            f"{how_to_install(plugin, {*self.installed, *served})}",
            provider=name,
        )

    def identity(self, provider: Provider) -> tuple[str, ...]:
        """The code that builds a provider's requests and reads its responses: distributions with versions, and wrappers.

        Part of cache keys, so that another version of a plugin does not read the results of this one.
        """
        plugin = self.installed.get(provider.plugin)
        own = plugin.distributions if plugin is not None else ()
        return (*own, *map(_class_name, self._wrappers))

    def _installed_names(self, served: set[str]) -> str:
        """The installed providers in a few words: names of general plugins are counted, not listed."""
        own = sorted(served | {name for name, plugin in self.installed.items() if not plugin.fallback})
        more = len(self.installed) + len(served - set(self.installed)) - len(own)
        if more:
            own.append(f"{more} more, which llmopt plugins lists")
        return f"there are {', '.join(own)}" if own else "none is installed"

    def names(self) -> tuple[str, ...]:
        """Configured entries, then installed plugins that need no key or have it in the environment."""
        configured = tuple(self._config.providers)
        served = {entry.plugin_name for entry in self._config.providers.values()}
        extra = [name for name in self.installed if name not in {*configured, *served} and self._usable(name)]
        return (*configured, *extra)

    def _usable(self, name: str) -> bool:
        if self.installed[name].fallback and not self._has_key(name):
            # A general plugin has many names; those without a key are skipped before anything is created.
            return False
        try:
            return all(each.discovered and not each.credential.problem for each in self.get(name).endpoints)
        except LLMOptError:
            # Nobody asked for this plugin by name, so its error is not reported.
            return False

    def _has_key(self, name: str) -> bool:
        if name not in self._variables:
            try:
                hooks = self._hooks_of(name, name)
                self._variables[name] = hooks.provider_profile(ProviderEntry(name=name)).key_env
            except LLMOptError:
                self._variables[name] = ()
        return any(map(self._environ.get, self._variables[name]))


def _class_name(wrapper: object) -> str:
    kind: Any = wrapper if isinstance(wrapper, ModuleType) else type(wrapper)
    return f"{getattr(kind, '__module__', '')} {kind.__name__}"
