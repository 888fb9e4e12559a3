"""Checks of import, packaging, hook discovery, profile and purity."""

from __future__ import annotations

import ast
import inspect
import math
import re
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import attrs
from attrs import evolve

import llmopt
from llmopt.testing.harness import (
    ENTRY_POINT_GROUP,
    FALLBACK_GROUP,
    HOOK_PARAMETERS,
    RESERVED_OPTIONS,
    discover_plugins,
    is_hook_implementation,
    is_loopback,
    is_provider_name,
    url_placeholders,
)
from llmopt.values.profile import Option
from llmopt_conformance.fixtures import OF_KEYS, OF_THE_WIRE, header_faults
from llmopt_conformance.observe import PACKAGE, SideEffect, import_in_fresh_interpreter, third_party
from llmopt_conformance.questions import HookObservation, differing_in_threads, observe_hooks
from llmopt_conformance.subject import (
    OPERATIONS,
    SOMEWHERE,
    CheckFailed,
    Family,
    NotApplicable,
    Subject,
    expect,
    explain,
    type_faults,
)

if TYPE_CHECKING:
    from importlib_metadata import EntryPoint
imports_checks: Final = Family("import")
_LIGHT: Final = frozenset({"attr", "attrs", "msgspec", "typing_extensions"})
_HEAVY_STANDARD: Final = frozenset(
    {"asyncio", "concurrent", "http", "multiprocessing", "sqlite3", "unittest"}
)


def _found(subject: Subject) -> dict[str, Any]:
    """What importing the module in a fresh interpreter comes to; done once."""
    if "import" not in subject.findings:
        files = [str(path) for path in subject.sources.files]
        subject.findings["import"] = import_in_fresh_interpreter(subject.module.__name__, files)
    found: dict[str, Any] = subject.findings["import"]
    return found


def _imported(subject: Subject) -> dict[str, Any]:
    if "error" in _found(subject):
        raise NotApplicable("it does not import; see import.works")
    return _found(subject)


@imports_checks("works")
def _works(subject: Subject) -> None:
    """The module imports in a fresh interpreter, on its own."""
    error = _found(subject).get("error")
    if error:
        raise CheckFailed(f"{subject.module.__name__} did not import: {error}")


@imports_checks("light")
def _light(subject: Subject) -> None:
    """Importing brings in no further package: what is slow is imported by the function that needs it."""
    own = subject.sources.module_name.partition(".")[0]
    extra = {name.partition(".")[0] for name in _imported(subject)["modules"] if third_party(name)}
    found = sorted(extra - _LIGHT - {own})
    expect(not found, f"it imports {', '.join(found)}.")


@imports_checks("light-core")
def _light_core(subject: Subject) -> None:
    """Importing brings in no heavy part of the standard library or of the core."""
    modules = _imported(subject)["modules"]
    standard = {name.partition(".")[0] for name in modules} & _HEAVY_STANDARD
    core = {
        name for name in modules if name.startswith(("llmopt.transport", "llmopt.engine", "llmopt.client"))
    }
    expect(not standard | core, f"it imports {', '.join(sorted(standard | core))}.")


def _never(subject: Subject, sins: tuple[str, ...], doing: str) -> None:
    for sin, what, place in _imported(subject)["acts"]:
        expect(sin not in sins, f"importing it {doing}: {what} at {place}.")


@imports_checks("no-threads")
def _no_threads(subject: Subject) -> None:
    """Importing starts no thread and no process."""
    _never(subject, ("threads", "processes"), "starts a thread or process")
    threads = _imported(subject)["threads"]
    expect(not threads, f"importing it starts the threads {', '.join(threads)}.")


@imports_checks("no-environment")
def _no_environment(subject: Subject) -> None:
    """Importing reads no environment variable: the profile names them, the core reads them."""
    _never(subject, ("environment",), "reads the environment")


@imports_checks("no-network")
def _no_network(subject: Subject) -> None:
    """Importing touches no network."""
    _never(subject, ("network",), "touches the network")


@imports_checks("no-files")
def _no_files(subject: Subject) -> None:
    """Importing reads no files besides the code itself, waits for nothing and prints nothing."""
    _never(subject, ("files",), "touches files")
    _never(subject, ("sleep",), "sleeps")
    printed = _imported(subject)["printed"].strip()
    expect(not printed, f"importing it prints {printed[:200]!r}.")


# The distribution, when the plugin is installed, and the names that its code takes from llmopt.

package_checks: Final = Family("package")
_OPEN: Final = ("llmopt.compatible", "llmopt.reading", "llmopt.errors", "llmopt.values", "llmopt.testing")
"""Modules of llmopt that a plugin may name; docs/plugins.md lists them."""
_REQUIREMENT: Final = re.compile(r"llmopt\s*(\[[^]]*\])?\s*\(?([^;)]*)", re.IGNORECASE)


def _entry_point(subject: Subject) -> EntryPoint:
    found = subject.sources.entry_point
    if found is None:
        raise NotApplicable("it is not installed: 'pip install -e .' it to have its packaging checked")
    return found


def _distribution(subject: Subject) -> Any:
    _entry_point(subject)
    found = subject.sources.distribution
    if found is None:
        raise NotApplicable("its entry point belongs to no distribution")
    return found


@package_checks("entry-point")
def _entry(subject: Subject) -> None:
    """The entry point's key is a provider's name and its value is the module, without anything inside it."""
    point = _entry_point(subject)
    expect(is_provider_name(point.name), f"the key is {point.name!r}.", "small letters, digits, - and _.")
    expect(not point.attr, f"the value is {point.value!r}.")


@package_checks("only-claim")
def _only_claim(subject: Subject) -> None:
    """No other installed distribution claims the provider's name."""
    found = discover_plugins()[_entry_point(subject).name.lower()]
    expect(found.conflict is None, str(found.conflict))


@package_checks("name")
def _name(subject: Subject) -> None:
    """The distribution is called llmopt-plugin-NAME, so that the line that llmopt tells users to try is right."""
    distribution = _distribution(subject)
    if _entry_point(subject).group == FALLBACK_GROUP:
        raise NotApplicable("a general plugin has many names")
    names = [point.name for point in distribution.entry_points if point.group == ENTRY_POINT_GROUP]
    allowed = [f"llmopt-plugin-{name}" for name in names]
    found = distribution.name.lower().replace("_", "-")
    expect(
        found in [each.replace("_", "-") for each in allowed],
        f"it is called {found}, not {' or '.join(allowed)}.",
    )


@package_checks("requires")
def _requires(subject: Subject) -> None:
    """The distribution requires llmopt with a lower and an upper bound, such as "llmopt>=0.1,<0.2"."""
    lines = [_REQUIREMENT.fullmatch(line.strip()) for line in _distribution(subject).requires or []]
    found = [match.group(2) for match in lines if match is not None]
    expect(found, "it does not require llmopt.")
    bounds = found[0]
    expect(
        ">=" in bounds or "~=" in bounds or ">" in bounds,
        f"it requires llmopt{bounds}, without a lower bound.",
    )
    expect("<" in bounds or "~=" in bounds, f"it requires llmopt{bounds}, without an upper bound.")


@package_checks("typed")
def _typed(subject: Subject) -> None:
    """A package has a file py.typed, so that type checkers read its annotations."""
    folder = subject.sources.folder
    if folder is None:
        raise NotApplicable("a single module cannot have one")
    expect((folder / "py.typed").is_file(), f"there is no {folder.name}/py.typed.")


def _imports(subject: Subject) -> Iterator[tuple[str, str, str]]:
    """Module, name ("" for a whole module) and place of everything that the plugin imports."""
    if not subject.sources.files:
        raise NotApplicable("its source is not at hand")
    for path in subject.sources.files:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            place = f"{path.name}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import):
                yield from ((alias.name, "", place) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                yield from ((node.module or "", alias.name, place) for alias in node.names)


@package_checks("public-names")
def _public_names(subject: Subject) -> None:
    """From llmopt itself it imports public names only, and only such as there are."""
    public = set(dir(llmopt)) | {"testing", "errors", "reading"}
    for module, name, place in _imports(subject):
        if module == PACKAGE and name:
            expect(name in public, f"{place} imports {name!r} from llmopt, which is no public name.")


@package_checks("public-modules")
def _public_modules(subject: Subject) -> None:
    """Of llmopt's modules it names only those that are public: compatible, reading, errors, values.*, testing."""
    for module, name, place in _imports(subject):
        if module.startswith(f"{PACKAGE}."):
            open_to_all = any(module == each or module.startswith(f"{each}.") for each in _OPEN)
            private = any(part.startswith("_") for part in (*module.split("."), name))
            expect(
                open_to_all and not private,
                f"{place} imports {module} {name}".rstrip() + ", which is not public.",
            )
            expect(find_spec(module), f"{place} imports {module}, which there is not.")


@package_checks("no-pluggy")
def _no_pluggy(subject: Subject) -> None:
    """It takes hookimpl from llmopt, and does not import pluggy."""
    for module, _, place in _imports(subject):
        expect(module.partition(".")[0] != "pluggy", f"{place} imports pluggy.")


# Whether the core finds the plugin's hooks at all.

discovery_checks: Final = Family("discovery")


def _routines(subject: Subject) -> Iterator[tuple[str, Callable[..., Any]]]:
    for name in dir(subject.plugin):
        found = inspect.getattr_static(subject.plugin, name, None)
        function = getattr(subject.plugin, name) if inspect.isroutine(found) else None
        if function is not None:
            yield name, function


def _marked(subject: Subject) -> Iterator[tuple[str, Callable[..., Any]]]:
    return ((name, each) for name, each in _routines(subject) if is_hook_implementation(each))


def _close(name: str) -> str:
    close = get_close_matches(name, sorted(HOOK_PARAMETERS), n=1)
    return f"; did you mean {close[0]}?" if close else f"; the hooks are {', '.join(sorted(HOOK_PARAMETERS))}"


@discovery_checks("name")
def _discovery_name(subject: Subject) -> None:
    """The provider's name has small letters, digits, "-" and "_" only, so that it can begin "provider/model"."""
    expect(is_provider_name(subject.name), f"the provider is called {subject.name!r}.")


@discovery_checks("any-hook")
def _any_hook(subject: Subject) -> None:
    """At least one function of the module is marked with @llmopt.hookimpl."""
    expect(list(_marked(subject)), f"{subject.sources.module_name} has no marked function.")


@discovery_checks("markers")
def _markers(subject: Subject) -> None:
    """Every function that is named like a hook is marked with @llmopt.hookimpl; unmarked it is never called."""
    bare = [n for n, each in _routines(subject) if n in HOOK_PARAMETERS and not is_hook_implementation(each)]
    expect(not bare, f"{', '.join(bare)} is named like a hook and lacks @llmopt.hookimpl.")


@discovery_checks("spelling")
def _spelling(subject: Subject) -> None:
    """Every function that is marked with @llmopt.hookimpl has the name of a hook."""
    for name, _ in _marked(subject):
        expect(name in HOOK_PARAMETERS, f"there is no hook {name!r}{_close(name)}.")


@discovery_checks("parameters")
def _parameters(subject: Subject) -> None:
    """A hook takes parameters of its specification only, by their names; it may leave some out."""
    for name, function in _marked(subject):
        if name in HOOK_PARAMETERS:
            allowed = HOOK_PARAMETERS[name]
            wrong = [
                each for each in inspect.signature(function).parameters if each not in {*allowed, "self"}
            ]
            expect(
                not wrong,
                f"{name} has the parameter {', '.join(wrong)}; the hook is {name}({', '.join(allowed)}).",
            )


@discovery_checks("defaults")
def _defaults(subject: Subject) -> None:
    """No parameter of a hook has a default: the core would always leave it at that."""
    for name, function in _marked(subject):
        if name in HOOK_PARAMETERS:
            parameters = inspect.signature(function).parameters.values()
            kept = [each.name for each in parameters if each.default is not each.empty]
            expect(
                not kept,
                f"{name} has a default for {', '.join(kept)}, and so is never given it.",
                "parameters without defaults; leave out those that are not used.",
            )


@discovery_checks("plain-functions")
def _plain(subject: Subject) -> None:
    """Hooks are plain functions: not async, no generators, no wrappers around other plugins."""
    for name, function in _marked(subject):
        kind = (
            "a coroutine function"
            if inspect.iscoroutinefunction(function)
            else "a generator"
            if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
            else ""
        )
        expect(not kind, f"{name} is {kind}.")


@discovery_checks("annotations")
def _annotations(subject: Subject) -> None:
    """Every hook says what it returns, so that a type checker can hold it to that."""
    for name, function in _marked(subject):
        expect("return" in getattr(function, "__annotations__", {}), f"{name} has no return annotation.")


@discovery_checks("loads")
def _loads(subject: Subject) -> None:
    """The core takes the plugin's hooks."""
    try:
        _ = subject.loaded
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what a user would meet
        expect(condition=False, found=explain(error))


# What the plugin says of its provider.

profile_checks: Final = Family("profile")
_VARIABLE: Final = re.compile(r"[A-Z_][A-Z0-9_]*\Z")
_OPTION: Final = re.compile(r"[a-z][a-z0-9_]*\Z")
_HOST: Final = re.compile(r"(\*\.)?([a-z0-9-]+\.)+[a-z0-9-]+\Z")
_HOUR: Final = 3600.0


@profile_checks("types")
def _types(subject: Subject) -> None:
    """provider_profile returns a Profile, each field of its own type."""
    faults = type_faults(subject.profile)
    expect(not faults, "\n".join(faults))


@profile_checks("base-url")
def _base_url(subject: Subject) -> None:
    """The base URL is https://host/path without a slash at the end; http only for this machine."""
    url = subject.profile.base_url
    if url is None:
        raise NotApplicable("only the user knows where this provider is")
    parts = urlsplit(url)
    local = parts.scheme == "http" and is_loopback(parts.hostname or "")
    expect(parts.scheme == "https" or local, f"base_url begins with {parts.scheme!r}.")
    expect(parts.hostname, "base_url has no host.")
    expect(not url.endswith("/"), "base_url ends with a slash.")


@profile_checks("gaps")
def _gaps(subject: Subject) -> None:
    """A gap in the base URL is one of the plugin's text options, and stands before a domain of the provider's own."""
    url = subject.profile.base_url
    names = url_placeholders(url)
    if url is None or not names:
        raise NotApplicable("the base URL has no gaps")
    texts = {option.name for option in subject.profile.options if option.type is str}
    wrong = [name for name in names if name not in texts]
    expect(not wrong, f"base_url asks for {', '.join(wrong)}, which no option of type str is called.")
    fixed = url.partition("://")[2].partition("/")[0].rpartition("}")[2]
    whole = "}" not in url.partition("://")[2].partition("/")[0]
    expect(whole or fixed.count(".") >= 2, "whatever is filled in decides whose the host is.")


@profile_checks("no-key-in-url")
def _no_key_in_url(subject: Subject) -> None:
    """The base URL has no user name, password, query or fragment: what stands there ends up in logs."""
    parts = urlsplit(subject.profile.base_url or "")
    for word, found in (("a user name or password", parts.username or parts.password), ("a query", parts.query),
                        ("a fragment", parts.fragment)):  # fmt: skip
        expect(not found, f"base_url holds {word}.")


@profile_checks("resolves")
def _resolves(subject: Subject) -> None:
    """With a key, a base URL and the samples' options, the configuration comes to an endpoint."""
    _ = subject.settings_of(subject.entry)


@profile_checks("environment-names")
def _environment_names(subject: Subject) -> None:
    """Environment variables have capital letters, digits and _ only."""
    profile = subject.profile
    names = [
        *profile.base_url_env,
        *profile.key_env,
        *(name for each in profile.options for name in each.env),
    ]
    wrong = [name for name in names if not _VARIABLE.match(name)]
    expect(not wrong, f"there are variables called {', '.join(map(repr, wrong))}.")


@profile_checks("key-names")
def _key_names(subject: Subject) -> None:
    """A provider that needs a key names the environment variable for it."""
    profile = subject.profile
    if not profile.key_required or profile.auth == "none":
        raise NotApplicable("this provider needs no key")
    expect(profile.key_env, "key_required is True and key_env is empty.")


@profile_checks("auth")
def _auth(subject: Subject) -> None:
    """The auth scheme is "bearer", "none" or the name of a header, and needs a key unless it is "none"."""
    profile = subject.profile
    if profile.auth not in ("bearer", "none"):
        faults = header_faults({profile.auth: ""})
        expect(
            not faults and profile.auth.lower() not in {*OF_THE_WIRE, "basic"}, f"auth is {profile.auth!r}."
        )
    expect(profile.auth != "none" or not profile.key_required, 'auth is "none" and key_required is True.')


@profile_checks("own-hosts")
def _own_hosts(subject: Subject) -> None:
    """Own hosts are host names of the provider's; a "*." stands before a name of at least two parts."""
    for host in subject.profile.own_hosts:
        expect(_HOST.match(host), f"own_hosts holds {host!r}.")
        expect(host.removeprefix("*.").count(".") >= 1, f"{host!r} lets keys go to a whole top-level domain.")


@profile_checks("headers")
def _headers(subject: Subject) -> None:
    """Headers are valid, and hold neither a key nor what belongs to the wire."""
    headers = subject.profile.headers
    faults = header_faults(headers)
    expect(not faults, "\n".join(faults))
    for name in headers:
        expect(
            name.lower() not in OF_KEYS, f"headers holds {name}: a key is the user's, never the profile's."
        )
        expect(name.lower() not in OF_THE_WIRE, f"headers holds {name}, which the wire sets.")


@profile_checks("timeouts")
def _timeouts(subject: Subject) -> None:
    """Timeouts are seconds: above 0, at most an hour; connecting takes no longer than a whole attempt."""
    times = subject.profile.timeouts
    seconds = [(name, value) for name, value in attrs.asdict(times).items() if name != "configured"]
    _within(seconds, "timeouts", least=0.001, most=_HOUR)
    expect(
        times.connect <= max(times.read, times.first or 0, 30),
        "timeouts.connect is longer than timeouts.read.",
    )


@profile_checks("retries")
def _retries(subject: Subject) -> None:
    """Retries are 0 to 10, and the first back-off is 0 to 60 seconds."""
    profile = subject.profile
    _within([("max_retries", profile.max_retries)], "Profile", least=0, most=10)
    _within([("retry_delay", profile.retry_delay)], "Profile", least=0, most=60)


@profile_checks("pool")
def _pool(subject: Subject) -> None:
    """There is at least one connection, as many as requests in flight, kept for an hour at most."""
    profile = subject.profile
    _within([("pool_size", profile.pool_size)], "Profile", least=1, most=10_000)
    _within([("max_concurrency", profile.max_concurrency)], "Profile", least=1, most=profile.pool_size)
    _within([("keepalive", profile.keepalive)], "Profile", least=0, most=_HOUR)


@profile_checks("rates")
def _rates(subject: Subject) -> None:
    """Usual rates are above 0, or None for no limit."""
    profile = subject.profile
    _within([("rpm", profile.rpm), ("tpm", profile.tpm)], "Profile", least=0.01, most=1e12)


@profile_checks("operations")
def _operations(subject: Subject) -> None:
    """Operations are some of "embeddings", "chat" and "catalog"; models are stated only where "catalog" is left out."""
    profile = subject.profile
    if profile.operations is None:
        expect(not profile.models, "it states models, but not by operations that there is no list of them.")
        raise NotApplicable("the profile does not tell its operations")
    unknown = sorted(profile.operations - OPERATIONS)
    expect(not unknown, f"operations has {', '.join(map(repr, unknown))}.")
    expect(profile.operations, "operations is empty, so that every call is refused.")
    expect(
        not (profile.models and "catalog" in profile.operations),
        "it states models and has a list of them, which is the one that is shown.",
    )
    names = [name for model in profile.models for name in (model.id, *model.aliases)]
    expect(all(names) and len(names) == len(set(names)), "a model of Profile.models has no name of its own.")


def _within(fields: Iterable[tuple[str, float | None]], owner: str, *, least: float, most: float) -> None:
    for name, value in fields:
        fine = value is None or (math.isfinite(value) and least <= value <= most)
        expect(fine, f"{owner}.{name} is {value}.", f"{least:g} to {most:g}.")


@profile_checks("options")
def _options(subject: Subject) -> None:
    """The plugin's own configuration keys have names of their own, each once, with a line of help."""
    names = [option.name for option in subject.profile.options]
    expect(len(names) == len(set(names)), f"an option is declared twice: {', '.join(sorted(names))}.")
    for option in subject.profile.options:
        _check_option(option)


def _check_option(option: Option) -> None:
    name = option.name
    expect(_OPTION.match(name), f"an option is called {name!r}.", "small letters, digits and _.")
    expect(name not in RESERVED_OPTIONS, f"the option {name!r} is a key of the core's already.")
    expect(option.help, f"the option {name!r} has no help, which its user reads when a value is wrong.")
    wrong = [choice for choice in option.choices if not isinstance(choice, option.type)]
    expect(not wrong, f"choices of the option {name!r} are not of its type {option.type.__name__}.")


@profile_checks("any-entry")
def _any_entry(subject: Subject) -> None:
    """provider_profile returns a Profile for any entry: a bare one, one with a base URL, one with odd options."""
    declared = subject.hooks.provider_profile(subject.bare_entry).options
    changes: dict[str, Any]
    for changes in (
        {"options": {}},
        {"base_url": SOMEWHERE, "options": {}},
        {"base_url": "http://127.0.0.1:9/v1"},
        {"options": {option.name: ["not", "checked"] for option in declared}},
        {"options": {"kit_unknown": object()}},
    ):
        _ = subject.hooks.provider_profile(evolve(subject.bare_entry, **changes))


# Hooks compute: they do nothing else, depend on nothing else, and leave everything as it was.

purity_checks: Final = Family("purity")
_OPENERS: Final = frozenset({"open_transport", "credential_provider"})
"""Hooks that make something which works later: they may look around, and no more."""
_ALLOWED: Final = frozenset({"clock", "environment", "files", "randomness"})


def _asked(subject: Subject) -> tuple[HookObservation, ...]:
    found = observe_hooks(subject)
    if not found:
        raise NotApplicable("the plugin has no hooks that could be asked")
    return found


def _purity_never(subject: Subject, sin: SideEffect, doing: str) -> None:
    for each in _asked(subject):
        if each.hook in _OPENERS and sin in _ALLOWED:
            continue
        for act in each.acts:
            expect(act.sin != sin, f"{each.title} {doing}: {act.what} at {act.place}.")


@purity_checks("no-network")
def _network(subject: Subject) -> None:
    """A hook never touches the network; the core sends what build_request returns."""
    _purity_never(subject, "network", "does network I/O")


@purity_checks("no-files")
def _files(subject: Subject) -> None:
    """A hook never touches files; what a plugin needs is in its code, or read when it is imported lazily."""
    _purity_never(subject, "files", "does file I/O")


@purity_checks("no-processes")
def _processes(subject: Subject) -> None:
    """A hook never starts or signals a process."""
    _purity_never(subject, "processes", "starts or signals a process")


@purity_checks("no-threads")
def _threads(subject: Subject) -> None:
    """A hook never starts a thread."""
    _purity_never(subject, "threads", "starts a thread")


@purity_checks("no-sleep")
def _sleep(subject: Subject) -> None:
    """A hook never sleeps: it runs on the event loop, so that all requests would wait with it."""
    _purity_never(subject, "sleep", "sleeps")


@purity_checks("no-clock")
def _clock(subject: Subject) -> None:
    """A hook never asks the time: response.received says when an answer came."""
    _purity_never(subject, "clock", "depends on the time")


@purity_checks("no-randomness")
def _randomness(subject: Subject) -> None:
    """A hook never draws random numbers."""
    _purity_never(subject, "randomness", "depends on chance")


@purity_checks("no-environment")
def _environment(subject: Subject) -> None:
    """A hook never reads environment variables: the profile names them, the core reads them."""
    _purity_never(subject, "environment", "reads the environment")


@purity_checks("no-output")
def _output(subject: Subject) -> None:
    """A hook never prints."""
    _purity_never(subject, "output", "prints")


@purity_checks("repeats")
def _repeats(subject: Subject) -> None:
    """The same question gets the same answer."""
    for each in _asked(subject):
        expect(each.repeats, f"{each.title} gave two different answers to the same question.")


@purity_checks("arguments")
def _arguments(subject: Subject) -> None:
    """A hook leaves its arguments as they are; it copies what it wants to change."""
    for each in _asked(subject):
        expect(not each.changed, f"{each.title} changed its argument {', '.join(each.changed)}.")


@purity_checks("nothing-shared")
def _shared(subject: Subject) -> None:
    """What a hook returns is its caller's alone: changing it changes no argument and no later result."""
    for each in _asked(subject):
        expect(
            not each.shares,
            f"{each.title} returns a dictionary that is not new: changing it changes {each.shares}.",
        )


@purity_checks("threads")
def _asked_by_threads(subject: Subject) -> None:
    """Hooks that several threads ask at once answer as they answer one thread."""
    _asked(subject)
    found = differing_in_threads(subject)
    expect(not found, f"with other threads beside it, another answer comes from {', '.join(found)}.")
