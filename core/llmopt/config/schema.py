"""What a configuration holds. Every key may be left out; the provider's profile then decides."""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final, Self, TypeAlias, TypeGuard

from attrs import Attribute, evolve, field, fields, frozen

from llmopt.errors import ConfigError
from llmopt.values.secret import Secret, repr_names

# Text that came from an environment variable, and still knows it.

_TRUE: Final = frozenset({"true", "1", "yes", "on"})
_FALSE: Final = frozenset({"false", "0", "no", "off"})
_LONGEST: Final = 64


class EnvText(str):
    """The value of an environment variable, named by ``variable``.

    Which type is wanted is only known where the key is read, so it stays text until then. A base
    URL of this type counts as given by the environment, see `llmopt.config.credentials`.
    """

    __slots__ = ("variable",)

    variable: str

    def __new__(cls, text: str, variable: str) -> Self:
        """Text and the name of its variable."""
        made = super().__new__(cls, text)
        made.variable = variable
        return made

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override] # str has one argument
        return str(self), self.variable

    def __repr__(self) -> str:
        return f"EnvText('***', variable={self.variable!r})"


def as_number(value: object) -> object:
    """The number that an environment variable spells, as TOML writes numbers; else the value itself."""
    if not isinstance(value, EnvText) or len(value) > _LONGEST or "\n" in value:
        return value
    import tomllib

    try:
        number: object = tomllib.loads(f"value = {value}")["value"]
    except (ValueError, RecursionError):
        return value
    return number if type(number) in (int, float) else value


def as_bool(value: object) -> object:
    """The truth that an environment variable spells; else the value itself."""
    if not isinstance(value, EnvText):
        return value
    word = value.strip().lower()
    return True if word in _TRUE else False if word in _FALSE else value


# What is wrong with a key, said without the value that stands there.

_BARE: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SHOWN: Final = 60


class KeyFault(ConfigError):
    """One key of a table is wrong.

    Attributes:
        key: path of the key inside its table, "" for the table itself.
        text: what is wrong, a sentence without its subject.
    """

    def __init__(self, key: str, text: str) -> None:
        super().__init__(f"{key}: {text}" if key else text)
        self.key = key
        self.text = text


def child(path: str, key: str | int) -> str:
    """The path of ``key`` in the table at ``path``; a number is a position in a list."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    if not _BARE.fullmatch(key):
        key = ascii(key if len(key) <= _SHOWN else key[:_SHOWN] + "...")
    return f"{path}.{key}" if path else key


def got(value: object) -> str:
    """The kind of a value in plain words, never the value."""
    for kind, words in _WORDS:
        if isinstance(value, kind):
            return words
    return "nothing" if value is None else type(value).__name__


_WORDS: Final[tuple[tuple[type, str], ...]] = (
    (bool, "true or false"),
    (int, "a whole number"),
    (float, "a number"),
    (str, "text"),
    (Mapping, "a table"),
    (list, "a list"),
    (tuple, "a list"),
)


def unknown_key(key: str, known: Iterable[str]) -> str:
    """The sentence about a key that nobody knows, with the likeliest one meant."""
    from difflib import get_close_matches

    names = sorted(known)
    word = key[:_SHOWN].lower().replace("-", "_")
    near = get_close_matches(word, names, n=1)
    if near:
        return f"unknown key; did you mean {near[0]}?"
    return f"unknown key; the keys here are {', '.join(names)}."


# The kinds of keys there are: each converts what it takes and refuses the rest.
#
# Each function makes an attrs field. A check belongs to the class, not to the way a value came:
# a table from a file and a call of the constructor pass the same one.

LONGEST_S: Final = 1e9
"""No time is longer than thirty years; clocks overflow somewhere beyond."""
MOST: Final = 10**9
FASTEST: Final = 1e12
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_USUAL: Final = re.compile(r"[A-Z][A-Z0-9_]{0,63}")


def _field(
    expected: str, fits: Callable[[Any], bool], convert: Callable[[object], object], **more: Any
) -> Any:
    def check(_: object, attribute: Attribute[Any], value: Any) -> None:
        if value is not None and not fits(value):
            raise KeyFault(attribute.name, f"expected {expected}, got {measured(value)}.")

    return field(default=None, converter=convert, validator=check, **more)


def measured(value: object) -> str:
    """A number as it stands, of anything else the kind only."""
    if isinstance(value, float) or (type(value) is int and abs(value) <= MOST):
        return str(value)
    return got(value)


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether it is an int or a float; true and false are no numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def to_float(value: object) -> object:
    """A number as a float, where it is one; anything else as it is."""
    value = as_number(value)
    # A whole number too long for a float stays as it is, and is out of any range.
    return float(value) if is_number(value) and abs(value) < FASTEST * 10 else value


def seconds(*, zero: bool = False) -> Any:
    """A time in seconds; with ``zero``, none at all is allowed too."""
    if zero:
        return _field("seconds, 0 or more", lambda v: is_number(v) and 0 <= v <= LONGEST_S, to_float)
    return _field("seconds above 0", lambda v: is_number(v) and 0 < v <= LONGEST_S, to_float)


def share() -> Any:
    """A share of the load, in relation to the shares of the others."""
    return _field("a number above 0", lambda v: is_number(v) and 0 < v <= MOST, to_float)


def count(*, least: int = 1) -> Any:
    """A whole number, ``least`` or more."""
    expected = f"a whole number, {least} or more"
    return _field(
        expected, lambda v: isinstance(v, int) and not isinstance(v, bool) and least <= v <= MOST, as_number
    )


def boolean() -> Any:
    """True or false."""
    return _field("true or false", lambda v: isinstance(v, bool), as_bool)


def text(**more: Any) -> Any:
    """Text with something in it."""
    return _field("text", lambda v: isinstance(v, str) and bool(v) and "\0" not in v, lambda v: v, **more)


def variable() -> Any:
    """The name of an environment variable."""
    return _field(
        "the name of an environment variable",
        lambda v: isinstance(v, str) and bool(_VARIABLE.fullmatch(v)),
        lambda v: v,
        repr=lambda v: repr(v) if v is None else shown_variable(v),
    )


def shown_variable(name: str) -> str:
    """The name of a variable for a message; hidden if it looks like a key that was put there by mistake."""
    return str(name) if _USUAL.fullmatch(name) else "'***'"


def folder() -> Any:
    """The path of a folder."""
    return _field("a path", lambda v: isinstance(v, str) and bool(v) and "\0" not in v, _path)


def _path(value: object) -> object:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def table_of(kind: type, *, plural: bool = False) -> Callable[[object, Attribute[Any], Any], None]:
    """A validator for a value, or a tuple of values, of one of the tree's own classes."""

    def check(_: object, attribute: Attribute[Any], value: Any) -> None:
        for each in value if plural else (value,):
            if not isinstance(each, kind):
                raise KeyFault(attribute.name, f"expected {kind.__name__}, got {got(each)}.")

    return check


# The keys that hold a table: rates by model, switches by name, headers.

_HEADER: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,256}")
_OURS: Final = frozenset(
    {"connection", "content-encoding", "content-length", "host", "te", "transfer-encoding", "upgrade"}
)
"""Headers that the wire sets; another value would break the framing of requests."""


def rate() -> Any:
    """A number for each minute, or a table of such numbers by model or deployment."""

    def check(_: object, attribute: Attribute[Any], value: Any) -> None:
        numbers = value if isinstance(value, Mapping) else {} if value is None else {None: value}
        for name, number in numbers.items():
            if not (is_number(number) and 0 < number <= FASTEST):
                key = attribute.name if name is None else child(attribute.name, name)
                raise KeyFault(key, f"expected a number above 0, got {measured(number)}.")

    def convert(value: object) -> object:
        if not isinstance(value, Mapping):
            return to_float(value)
        return {name: to_float(number) for name, number in _items("a rate", value)}

    return field(default=None, converter=convert, validator=check)


def to_switches(value: Mapping[str, bool] | None, known: frozenset[str]) -> dict[str, bool]:
    """A table of true and false under ``known`` names."""
    found: dict[str, bool] = {}
    for name, item in _items("flags", value):
        flag = as_bool(item)
        if name not in known:
            raise KeyFault(child("flags", name), unknown_key(name, known))
        if not isinstance(flag, bool):
            raise KeyFault(child("flags", name), f"expected true or false, got {got(flag)}.")
        found[name] = flag
    return found


def to_headers(value: Mapping[str, str] | None) -> dict[str, str]:
    """Header names in lower case, each with a value that can be sent."""
    found: dict[str, str] = {}
    for name, text in _items("headers", value):
        # A name that is none may hold a whole header line, key and all: it is not shown.
        if not _HEADER.fullmatch(name):
            raise KeyFault("headers", "one of the names is not a header's name.")
        fault = _header_fault(name.lower(), text, found)
        if fault:
            raise KeyFault(child("headers", name), fault)
        found[name.lower()] = str(text)
    return found


def _header_fault(name: str, text: object, found: Mapping[str, str]) -> str:
    if name in _OURS:
        return "llmopt sets this header itself."
    if name in found:
        return "this header is given twice."
    if not isinstance(text, str):
        return f"expected text, got {got(text)}."
    if not (text.isascii() and text.isprintable()):
        return "its value holds a line break or a character outside printable ASCII."
    return ""


def _items(table: str, value: Mapping[str, Any] | None) -> list[tuple[str, Any]]:
    """The keys that have a value; None says the same as leaving the key out."""
    if value is None:
        return []
    if not isinstance(value, Mapping):
        raise KeyFault(table, f"expected a table, got {got(value)}.")
    if not all(isinstance(name, str) for name in value):
        raise KeyFault(table, "every key of this table must be text.")
    return [(name, item) for name, item in value.items() if item is not None]


TokenProvider: TypeAlias = Callable[[], str | Awaitable[str]]
"""Called for every attempt; gives a key or token that is valid now."""
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,127}")


@frozen(kw_only=True)
class Flags:
    """What llmopt does for a request; each can be switched off."""

    cache: bool = True
    pooling: bool = True
    compression: bool = True
    retry: bool = True
    batching: bool = True
    breaker: bool = True
    limiter: bool = True
    concurrency: bool = True
    balance: bool = True
    coalesce: bool = True
    adaptive_timeouts: bool = True
    adaptive_batches: bool = True

    def overridden(self, *overrides: Mapping[str, bool] | None) -> Flags:
        """These flags with some of them set anew; later tables win.

        Raises:
            ConfigError: a flag is unknown or not a bool.
        """
        found = self
        for table in overrides:
            found = evolve(found, **_overrides(table))
        return found


_FLAGS: Final = frozenset(flag.name for flag in fields(Flags))


def _overrides(value: Mapping[str, bool] | None) -> dict[str, bool]:
    return to_switches(value, _FLAGS)


def _key(value: str | Secret | TokenProvider | None) -> Secret | TokenProvider | None:
    if not isinstance(value, str):
        if value is None or isinstance(value, Secret) or callable(value):
            return value
        raise KeyFault("api_key", f"expected text or a function that returns it, got {got(value)}.")
    fault = ""
    try:
        return Secret(value)
    except ConfigError as error:
        fault = error.message
    raise KeyFault("api_key", fault)


def _shown_url(value: object) -> str:
    # A URL is checked when endpoints are resolved; until then it may hold a password or a key.
    return "'***'" if isinstance(value, str) and ("@" in value or "?" in value) else repr(value)


def _options(value: Mapping[str, Any] | None) -> dict[str, Any]:
    return dict(value or {})


@frozen(kw_only=True)
class TimeoutsEntry:
    """Configured time-outs in seconds; see `llmopt.values.profile.Timeouts`."""

    connect: float | None = seconds()
    read: float | None = seconds()
    read_large: float | None = seconds()
    catalog: float | None = seconds()
    chat: float | None = seconds()
    first_event: float | None = seconds()
    idle: float | None = seconds()
    idle_content: float | None = seconds()
    first: float | None = seconds()
    pool: float | None = seconds()
    total: float | None = seconds()


@frozen(kw_only=True)
class _Entry:
    """The keys that an entry and each of its endpoints have in common.

    Attributes:
        base_url: where the server is.
        api_key: the key itself, or a function (sync or async) that gives one for every attempt.
        api_key_env: name of the environment variable that holds the key.
        headers: sent with every request; names in lower case.
        max_retries: retries after a first attempt, so 3 means at most 4 requests.
        retry_delay: first back-off in seconds.
        rpm, tpm: requests and tokens a minute, one number or a table by model or deployment
            with "default" for all others.
        max_batch_size: most items in one request.
        max_concurrency: most requests in flight.
        pool_size: most connections.
        keepalive: seconds an idle connection is kept.
        compress_requests: whether request bodies go out with gzip.
        cache_ttl: seconds a cached answer is good for, 0 for no caching.
        cache_dir: folder of the cache.
        allow_http: whether a host other than this machine may be asked without encryption.
        flags: the switches set here, see `Flags`.
        options: the plugin's own keys, not checked yet.
    """

    base_url: str | None = text(repr=_shown_url)
    api_key: Secret | TokenProvider | None = field(default=None, converter=_key, repr=False)
    api_key_env: str | None = variable()
    headers: Mapping[str, str] = field(default=None, converter=to_headers, repr=repr_names)
    timeouts: TimeoutsEntry = field(factory=TimeoutsEntry, validator=table_of(TimeoutsEntry))
    max_retries: int | None = count(least=0)
    retry_delay: float | None = seconds(zero=True)
    rpm: float | Mapping[str, float] | None = rate()
    tpm: float | Mapping[str, float] | None = rate()
    max_batch_size: int | None = count()
    max_concurrency: int | None = count()
    pool_size: int | None = count()
    keepalive: float | None = seconds(zero=True)
    compress_requests: bool | None = boolean()
    cache_ttl: float | None = seconds(zero=True)
    cache_dir: str | None = folder()
    allow_http: bool | None = boolean()
    flags: Mapping[str, bool] = field(default=None, converter=_overrides)
    options: Mapping[str, Any] = field(default=None, converter=_options, repr=repr_names)

    def __attrs_post_init__(self) -> None:
        if self.api_key is not None and self.api_key_env is not None:
            raise KeyFault("api_key_env", "api_key is set as well; give one of the two.")


@frozen(kw_only=True)
class EndpointEntry(_Entry):
    """One of several endpoints of an entry: whatever it sets overrides the entry's.

    Attributes:
        weight: its share of the load.
    """

    weight: float | None = share()


@frozen(kw_only=True)
class ProviderEntry(_Entry):
    """One provider as configured.

    Attributes:
        name: the first part of a model reference, ``<name>/<model>``.
        plugin: the plugin that serves it, None for the one called like the entry.
        endpoints: what the load is spread over; none for the entry's own keys alone.
    """

    name: str = ""
    plugin: str | None = text()
    endpoints: tuple[EndpointEntry, ...] = field(default=(), validator=table_of(EndpointEntry, plural=True))

    @property
    def plugin_name(self) -> str:
        """Name of the plugin that serves this entry."""
        return self.plugin or self.name


def _named(value: Mapping[Any, ProviderEntry]) -> dict[str, ProviderEntry]:
    for name, entry in value.items():
        table_of(ProviderEntry)(None, fields(Config).providers, entry)
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise KeyFault(
                child("providers", name),
                "the name of an entry has small letters, digits, - and _ only, and begins with none of those two.",
            )
    return {name: evolve(entry, name=name) for name, entry in value.items()}


def _cache(value: object) -> bool | str | None:
    chosen = as_bool(value)
    if chosen is None or isinstance(chosen, bool) or (isinstance(chosen, str) and chosen):
        return chosen
    raise KeyFault("cache", f"expected true, false or text, got {got(chosen)}.")


@frozen(kw_only=True)
class Config:
    """A whole configuration.

    Attributes:
        providers: the entries by name.
        flags: the switches set for all of them; an entry's own win.
        cache: whether embeddings are cached, or where; None for the client's default.
        cache_dir: folder of all caches.
    """

    providers: Mapping[str, ProviderEntry] = field(factory=dict, converter=_named)
    flags: Mapping[str, bool] = field(default=None, converter=_overrides)
    cache: bool | str | None = field(default=None, converter=_cache, repr=_shown_url)
    cache_dir: str | None = folder()

    def entry(self, name: str) -> ProviderEntry:
        """The entry of that name; one without any key where nothing is configured."""
        return self.providers.get(name) or ProviderEntry(name=name)
