"""The configuration schema: every key of ``llmopt.toml``, with its unit and its check.

Every key is optional; the provider's profile gives the default. Checks belong to the classes, so that a table from a
file and a call of the constructor pass the same ones. Messages name a key by its path and never contain its value,
which may be a secret.

No I/O and no state: it reads neither the file nor the environment (`llmopt.config.load` does), and opens no file that
its values name. A token provider is kept and not called. Tables of the caller are copied, the values in ``options`` not.
"""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final, Self, TypeAlias, TypeGuard

from attrs import Attribute, evolve, field, fields, frozen

from llmopt.errors import ConfigError
from llmopt.values.secret import HiddenStr, Secret, repr_names

TokenProvider: TypeAlias = Callable[[], str | Awaitable[str]]
"""A function that returns a key or token that is valid now; called for every attempt."""

MAX_SECONDS: Final = 1e9
"""About thirty years. Longer times overflow in the clocks of some systems."""
MAX_COUNT: Final = 10**9
MAX_RATE: Final = 1e12
_MAX_NUMBER_LENGTH: Final = 64
_MAX_SHOWN_KEY: Final = 60
_TRUE: Final = frozenset({"true", "1", "yes", "on"})
_FALSE: Final = frozenset({"false", "0", "no", "off"})
_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_USUAL_VARIABLE: Final = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_ENTRY_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,127}")
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,256}")
_PARAMETER_NAME: Final = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]{1,256}")
_PATH: Final = re.compile(r"(?!-----BEGIN )[^\0\r\n]+")
_TRANSPORT_HEADERS: Final = frozenset(
    {"connection", "content-encoding", "content-length", "host", "te", "transfer-encoding", "upgrade"}
)
"""Headers that the transport sets; another value would break the framing of requests (RFC 9112)."""

# Values of environment variables: text whose type is known only where its key is read.


class EnvText(str):
    """The value of an environment variable, with the variable's name.

    It stays text until the key is read, because only the key knows the wanted type. A base URL of this type counts
    as given by the environment, see `llmopt.config.credentials`.

    Attributes:
        variable: name of the variable.
    """

    __slots__ = ("variable",)

    variable: str

    def __new__(cls, text: str, variable: str) -> Self:
        """Make it from the text and the name of the variable."""
        value = super().__new__(cls, text)
        value.variable = variable
        return value

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override] # str has one argument
        return str(self), self.variable

    def __repr__(self) -> str:
        return f"EnvText('***', variable={self.variable!r})"


def parse_number(value: object) -> object:
    """Convert an environment variable to a number, in the syntax of TOML; return any other value unchanged."""
    if not isinstance(value, EnvText) or len(value) > _MAX_NUMBER_LENGTH or "\n" in value:
        return value
    import tomllib

    try:
        number: object = tomllib.loads(f"value = {value}")["value"]
    except (ValueError, RecursionError):
        return value
    # Dates and text are TOML, too, but no numbers.
    return number if type(number) in (int, float) else value


def parse_bool(value: object) -> object:
    """Convert an environment variable such as "yes" or "0" to a bool; return any other value unchanged."""
    if not isinstance(value, EnvText):
        return value
    word = value.strip().lower()
    return True if word in _TRUE else False if word in _FALSE else value


# Errors: which key is wrong, and why.


class InvalidKey(ConfigError):
    """A key of a table has a wrong value.

    Attributes:
        key: path of the key inside its table; "" for the table itself.
        text: what is wrong with it, without the key.
    """

    def __init__(self, key: str, text: str) -> None:
        super().__init__(f"{key}: {text}" if key else text)
        self.key = key
        self.text = text


def join_path(path: str, key: str | int) -> str:
    """The path of a key in the table at ``path``; a number is a position in a list."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    if not _BARE_KEY.fullmatch(key):
        key = ascii(key if len(key) <= _MAX_SHOWN_KEY else key[:_MAX_SHOWN_KEY] + "...")
    return f"{path}.{key}" if path else key


KIND_NAMES: Final[Mapping[type, str]] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Mapping: "a table",
    dict: "a table",
    list: "a list",
    tuple: "a list",
}


def kind_name(value: object) -> str:
    """The type of a value in plain words; never the value, which may be a secret."""
    for kind, words in KIND_NAMES.items():
        if isinstance(value, kind):
            return words
    return "nothing" if value is None else type(value).__name__


def unknown_key_message(key: str, known: Iterable[str]) -> str:
    """What to say about an unknown key: the most similar known one, or all of them."""
    from difflib import get_close_matches

    names = sorted(known)
    word = key[:_MAX_SHOWN_KEY].lower().replace("-", "_")
    if near := get_close_matches(word, names, n=1):
        return f"unknown key; did you mean {near[0]}?"
    return f"unknown key; the keys here are {', '.join(names)}."


# Fields by the kind of value that their key takes: each converts the value, and refuses what does not fit.


def _field(
    expected: str, fits: Callable[[Any], bool], convert: Callable[[object], object] = lambda v: v, **more: Any
) -> Any:
    def check(_: object, attribute: Attribute[Any], value: Any) -> None:
        if value is not None and not fits(value):
            raise InvalidKey(attribute.name, f"expected {expected}, got {_describe(value)}.")

    return field(default=None, converter=convert, validator=check, **more)


def _describe(value: object) -> str:
    """A number itself; of any other value only the type."""
    # A secret of digits that was put here by mistake would be longer, and is not shown.
    if isinstance(value, float) or (type(value) is int and abs(value) <= MAX_COUNT):
        return str(value)
    return kind_name(value)


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether the value is an int or a float; a bool is not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def to_float(value: object) -> object:
    """Convert a number to a float; return any other value unchanged, for the check to refuse."""
    value = parse_number(value)
    # float() raises for a huge int; unconverted, it fails the check of the range instead.
    return float(value) if is_number(value) and abs(value) < MAX_RATE * 10 else value


def _seconds(*, zero: bool = False) -> Any:
    """A time in seconds, above 0; with ``zero`` also 0."""
    if zero:
        return _field("seconds, 0 or more", lambda v: is_number(v) and 0 <= v <= MAX_SECONDS, to_float)
    return _field("seconds above 0", lambda v: is_number(v) and 0 < v <= MAX_SECONDS, to_float)


def _weight() -> Any:
    """A share of the load, relative to the shares of the other endpoints."""
    return _field("a number above 0", lambda v: is_number(v) and 0 < v <= MAX_COUNT, to_float)


def _count(*, minimum: int = 1) -> Any:
    """A whole number, ``minimum`` or more."""
    expected = f"a whole number, {minimum} or more"
    return _field(
        expected, lambda v: is_number(v) and isinstance(v, int) and minimum <= v <= MAX_COUNT, parse_number
    )


def _boolean() -> Any:
    """True or false."""
    return _field("true or false", lambda v: isinstance(v, bool), parse_bool)


def _text(**more: Any) -> Any:
    """Text that is not empty."""
    return _field("text", lambda v: isinstance(v, str) and bool(v) and "\0" not in v, **more)


def _transport() -> Any:
    return _field('"pool" or "httpx"', ("pool", "httpx").__contains__)


def _variable() -> Any:
    """The name of an environment variable."""
    return _field(
        "the name of an environment variable",
        lambda v: isinstance(v, str) and bool(_VARIABLE.fullmatch(v)),
        repr=lambda v: repr(v) if v is None else shown_variable(v),
    )


def shown_variable(name: str) -> str:
    """The name of a variable for a message; hidden if it looks like a key that was put there by mistake."""
    return str(name) if _USUAL_VARIABLE.fullmatch(name) else "'***'"


def _path() -> Any:
    """The path of a file or folder."""
    # A text with line breaks is the content of a file, pasted instead of its path.
    return _field(
        "the path of a file or folder",
        lambda v: isinstance(v, str) and bool(_PATH.fullmatch(v)),
        lambda v: os.fspath(v) if isinstance(v, os.PathLike) else v,
    )


def _instance_of(kind: type, *, plural: bool = False) -> Callable[[object, Attribute[Any], Any], None]:
    """A validator: the value, or each value of a tuple, is an instance of ``kind``."""

    def check(_: object, attribute: Attribute[Any], value: Any) -> None:
        for each in value if plural else (value,):
            if not isinstance(each, kind):
                raise InvalidKey(attribute.name, f"expected {kind.__name__}, got {kind_name(each)}.")

    return check


# Keys that hold a table: rates by model, flags by name, headers.


def _rate() -> Any:
    """A number per minute, or a table of such numbers by model or deployment."""

    def check(_: object, attribute: Attribute[Any], value: Any) -> None:
        numbers = value if isinstance(value, Mapping) else {} if value is None else {None: value}
        for name, number in numbers.items():
            if not (is_number(number) and 0 < number <= MAX_RATE):
                key = attribute.name if name is None else join_path(attribute.name, name)
                raise InvalidKey(key, f"expected a number above 0, got {_describe(number)}.")

    def convert(value: object) -> object:
        if not isinstance(value, Mapping):
            return to_float(value)
        return {name: to_float(number) for name, number in _items("a rate", value)}

    return field(default=None, converter=convert, validator=check)


def _to_flags(value: Mapping[str, bool] | None) -> dict[str, bool]:
    """Check a table of flags.

    Raises:
        ConfigError: there is no flag of a name, or a value is not a bool.
    """
    known = {flag.name for flag in fields(Flags)}
    flags: dict[str, bool] = {}
    for name, item in _items("flags", value):
        flag = parse_bool(item)
        if name not in known:
            raise InvalidKey(join_path("flags", name), unknown_key_message(name, known))
        if not isinstance(flag, bool):
            raise InvalidKey(join_path("flags", name), f"expected true or false, got {kind_name(flag)}.")
        flags[name] = flag
    return flags


def to_headers(value: Mapping[str, str] | None) -> dict[str, str]:
    """Check headers and return them with names in lower case.

    Raises:
        ConfigError: a header cannot be sent, or the transport sets it itself.
    """
    headers: dict[str, str] = {}
    for name, text in _items("headers", value):
        # An invalid name is not shown: it may be a whole header line with a key in it.
        if not _HEADER_NAME.fullmatch(name):
            raise InvalidKey("headers", "one of the names is not a valid header name.")
        problem = _header_problem(name.lower(), text, headers)
        if problem:
            raise InvalidKey(join_path("headers", name), problem)
        headers[name.lower()] = HiddenStr(text)
    return headers


def _header_problem(name: str, text: object, headers: Mapping[str, str]) -> str:
    if name in _TRANSPORT_HEADERS:
        return "llmopt sets this header itself; leave it out."
    if name in headers:
        return "this header is given twice."
    if not isinstance(text, str):
        return f"expected text, got {kind_name(text)}."
    # A line break would end the header and begin another (header injection).
    if not (text.isascii() and text.isprintable()):
        return "its value contains a line break or a character outside printable ASCII."
    return ""


def to_query(value: Mapping[str, str] | None) -> dict[str, str]:
    """Check the parameters of a query and return them.

    Raises:
        ConfigError: a parameter cannot be sent.
    """
    query: dict[str, str] = {}
    for name, text in _items("query", value):
        if not _PARAMETER_NAME.fullmatch(name):
            raise InvalidKey("query", "one of the names is empty, too long or contains a control character.")
        # A version such as 2024.10 would lose its last digit as a number.
        if not isinstance(text, str):
            raise InvalidKey(
                join_path("query", name), f"expected text, got {kind_name(text)}; write it in quotes."
            )
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise InvalidKey(join_path("query", name), "its value contains half of a surrogate pair.")
        query[name] = HiddenStr(text)
    return query


def _items(table: str, value: Mapping[str, Any] | None) -> list[tuple[str, Any]]:
    """The keys that have a value; None is the same as no key."""
    if value is None:
        return []
    if not isinstance(value, Mapping):
        raise InvalidKey(table, f"expected a table, got {kind_name(value)}.")
    if not all(isinstance(name, str) for name in value):
        raise InvalidKey(table, "every key of this table must be text.")
    return [(name, item) for name, item in value.items() if item is not None]


# The classes of the schema.


@frozen(kw_only=True)
class Flags:
    """The features of llmopt; each is on unless it is switched off.

    Attributes:
        cache: cache embeddings and lists of models.
        pooling: keep idle connections.
        compression: accept compressed responses; needed for ``compress_requests``.
        retry: retry failed attempts.
        batching: put several texts into one request.
        breaker: stop requests to an endpoint that fails repeatedly (circuit breaker).
        limiter: keep to the rate limits.
        concurrency: limit the requests in flight.
        balance: spread requests over the endpoints of an entry.
        coalesce: share one request between equal calls at the same time.
        adaptive_timeouts: derive timeouts from the latencies measured.
        adaptive_batches: derive batch sizes from the responses.
        lane: run first attempts by callbacks, without a task or coroutine of their own.
    """

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
    lane: bool = True

    def overridden(self, *overrides: Mapping[str, bool] | None) -> Flags:
        """These flags with some of them replaced; later tables win.

        Raises:
            ConfigError: a flag is unknown or not a bool.
        """
        return evolve(self, **{name: on for table in overrides for name, on in _to_flags(table).items()})


def _api_key(value: str | Secret | TokenProvider | None) -> Secret | TokenProvider | None:
    if not isinstance(value, str):
        if value is None or isinstance(value, Secret) or callable(value):
            return value
        raise InvalidKey("api_key", f"expected text or a function that returns it, got {kind_name(value)}.")
    problem = ""
    try:
        return Secret(value)
    except ConfigError as error:
        problem = error.message
    # Outside the except block, so that no traceback shows the key.
    raise InvalidKey("api_key", problem)


def _shown_url(value: object) -> str:
    # A URL is checked when its endpoint is resolved; until then it may contain a password or a key.
    return "'***'" if isinstance(value, str) and ("@" in value or "?" in value) else repr(value)


def _options(value: Mapping[str, Any] | None) -> dict[str, Any]:
    return dict(value or {})


@frozen(kw_only=True)
class TimeoutsEntry:
    """Configured timeouts in seconds; `llmopt.values.profile.Timeouts` says what each one bounds."""

    connect: float | None = _seconds()
    read: float | None = _seconds()
    read_large: float | None = _seconds()
    catalog: float | None = _seconds()
    chat: float | None = _seconds()
    first_event: float | None = _seconds()
    idle: float | None = _seconds()
    idle_content: float | None = _seconds()
    first: float | None = _seconds()
    pool: float | None = _seconds()
    total: float | None = _seconds()


@frozen(kw_only=True)
class _EndpointKeys:
    """The keys that an entry and each of its endpoints share.

    Where no default is named, the provider's profile gives it.

    Attributes:
        base_url: URL of the API, for example ``https://api.acme.example/v1``.
        api_key: the key itself, or a function (sync or async) that returns one for every attempt. Default: the
            environment variable that the profile names.
        api_key_env: name of an environment variable that holds the key, instead of ``api_key``.
        headers: sent with every request; names in lower case. Default: none.
        query: parameters that are added to the URL of every request, such as a gateway's key. Default: none.
        ca_file: certificate authorities, instead of the system's: a PEM file, or a folder as ``openssl rehash`` makes it.
        client_cert: PEM file of the certificate that this client shows to the server. Default: none.
        client_key: PEM file of its private key. Default: ``client_cert`` contains the key.
        timeouts: in seconds, see `TimeoutsEntry`.
        max_retries: retries after the first attempt; 3 means at most 4 requests.
        retry_delay: first backoff in seconds.
        rpm: requests per minute: one number, or a table by model or deployment with "default" for all others.
        tpm: tokens per minute, in the same form.
        max_batch_size: maximum items in one request. Default: as many as the provider accepts.
        max_concurrency: maximum requests in flight.
        pool_size: maximum connections.
        keepalive: seconds that an idle connection is kept.
        transport: "pool" for llmopt's own connections, "httpx" for those of httpx. Default: the configuration's, else "pool".
        compress_requests: whether request bodies are compressed with gzip.
        max_event_bytes: maximum size of one event of a stream.
        cache_ttl: seconds that a cached response is fresh; 0 switches the cache off.
        cache_dir: folder of the cache. Default: the one of the whole configuration.
        stream_usage: whether streams are asked for their token usage (``stream_options``).
        allow_http: whether plain http to another machine is allowed. Default: false.
        flags: features to switch on or off, see `Flags`.
        options: the plugin's own keys; they are checked when the entry is resolved.
    """

    base_url: str | None = _text(repr=_shown_url)
    api_key: Secret | TokenProvider | None = field(default=None, converter=_api_key, repr=False)
    api_key_env: str | None = _variable()
    headers: Mapping[str, str] = field(default=None, converter=to_headers, repr=repr_names)
    query: Mapping[str, str] = field(default=None, converter=to_query, repr=repr_names)
    ca_file: str | None = _path()
    client_cert: str | None = _path()
    client_key: str | None = _path()
    timeouts: TimeoutsEntry = field(factory=TimeoutsEntry, validator=_instance_of(TimeoutsEntry))
    max_retries: int | None = _count(minimum=0)
    retry_delay: float | None = _seconds(zero=True)
    rpm: float | Mapping[str, float] | None = _rate()
    tpm: float | Mapping[str, float] | None = _rate()
    max_batch_size: int | None = _count()
    max_concurrency: int | None = _count()
    pool_size: int | None = _count()
    keepalive: float | None = _seconds(zero=True)
    transport: str | None = _transport()
    compress_requests: bool | None = _boolean()
    max_event_bytes: int | None = _count()
    cache_ttl: float | None = _seconds(zero=True)
    cache_dir: str | None = _path()
    stream_usage: bool | None = _boolean()
    allow_http: bool | None = _boolean()
    flags: Mapping[str, bool] = field(default=None, converter=_to_flags)
    options: Mapping[str, Any] = field(default=None, converter=_options, repr=repr_names)

    def __attrs_post_init__(self) -> None:
        if self.api_key is not None and self.api_key_env is not None:
            raise InvalidKey("api_key_env", "api_key is set as well; give one of the two.")


@frozen(kw_only=True)
class EndpointEntry(_EndpointKeys):
    """One of several endpoints of an entry; each key that it sets overrides that of the entry.

    Attributes:
        weight: share of the load, relative to the other endpoints. Default: 1.
    """

    weight: float | None = _weight()


@frozen(kw_only=True)
class ProviderEntry(_EndpointKeys):
    """One configured provider.

    Attributes:
        name: the first part of a model reference ``<name>/<model>``.
        plugin: name of the plugin that serves it. Default: the name of the entry.
        endpoints: the load is spread over these. Default: one endpoint, with the keys of the entry.
    """

    name: str = ""
    plugin: str | None = _text()
    endpoints: tuple[EndpointEntry, ...] = field(
        default=(), validator=_instance_of(EndpointEntry, plural=True)
    )

    @property
    def plugin_name(self) -> str:
        """Name of the plugin that serves this entry."""
        return self.plugin or self.name


@frozen(kw_only=True)
class SharedEntry:
    """The store of shared limits: its URL, the environment variable with the secret, whether calls need it."""

    url: str | None = _text(repr=_shown_url)
    secret_env: str | None = _variable()
    required: bool | None = _boolean()


def _named(value: Mapping[Any, ProviderEntry]) -> dict[str, ProviderEntry]:
    for name, entry in value.items():
        _instance_of(ProviderEntry)(None, fields(Config).providers, entry)
        if not isinstance(name, str) or not _ENTRY_NAME.fullmatch(name):
            raise InvalidKey(
                join_path("providers", name),
                "the name of an entry has lower-case letters, digits, - and _ only, and starts with a letter or a digit.",
            )
    return {name: evolve(entry, name=name) for name, entry in value.items()}


def _cache(value: object) -> bool | str | None:
    chosen = parse_bool(value)
    if chosen is None or isinstance(chosen, bool) or (isinstance(chosen, str) and chosen):
        return chosen
    raise InvalidKey("cache", f"expected true, false or text, got {kind_name(chosen)}.")


@frozen(kw_only=True)
class Config:
    """A whole configuration.

    Attributes:
        providers: the entries by name.
        flags: features to switch on or off for all entries; the flags of an entry win.
        cache: whether embeddings are cached, or where. Default: as the client's ``cache`` argument says.
        cache_dir: folder of all caches. Default: the user's cache folder.
        transport: what sends the requests of all entries that do not say it themselves. Default: "pool".
        shared: the store of limits that several processes share.
        wrappers: names of installed wrapper plugins that every provider gets. Default: none.
    """

    providers: Mapping[str, ProviderEntry] = field(factory=dict, converter=_named)
    flags: Mapping[str, bool] = field(default=None, converter=_to_flags)
    cache: bool | str | None = field(default=None, converter=_cache, repr=_shown_url)
    cache_dir: str | None = _path()
    transport: str | None = _transport()
    shared: SharedEntry = field(factory=SharedEntry, validator=_instance_of(SharedEntry))
    wrappers: tuple[str, ...] | None = _field(
        "a list of names", lambda v: isinstance(v, (list, tuple)) and set(map(type, v)) <= {str}
    )

    def entry(self, name: str) -> ProviderEntry:
        """The entry of that name; without any keys if it is not configured."""
        entry = self.providers.get(name) or ProviderEntry(name=name)
        return entry if entry.transport else evolve(entry, transport=self.transport)
