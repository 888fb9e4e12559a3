"""From what a plugin says to the bytes that go out, checked on the way."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import msgspec
from attrs import define, evolve, field

from llmopt.errors import InvalidInput, PluginContractError
from llmopt.values.calls import Call, CatalogCall
from llmopt.values.http import HttpRequest
from llmopt.values.settings import Settings

_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_HEADER_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*\Z")
_IN_PROCESS: Final = "http://in-process"
_PATH: Final = re.compile(r"[\x21-\x7e]*\Z")

_OWN: Final = {"accept": "application/json"}
_MOST_CHECKED: Final = 64

encoder: Final = msgspec.json.Encoder()


@define(kw_only=True, eq=False)
class Prepared:
    """A request ready for the wire. Nothing of it is ever changed; freezing it would double its price.

    Attributes:
        unpacked: the body as it was before it was packed, None where it is not.
    """

    method: str
    url: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes | None = field(repr=False)
    unpacked: bytes | None = field(default=None, repr=False)


class Preparer:
    """Encodes the requests of one endpoint. Their addresses and headers are checked once: they repeat.

    Args:
        compression: whether answers may come packed.
    """

    def __init__(self, *, compression: bool = True) -> None:
        # What may come packed, and how, is for the wire to say.
        self._own: Final = _OWN if compression else {**_OWN, "accept-encoding": "identity"}
        self._checked: Final[dict[tuple[object, ...], tuple[str, Mapping[str, str]]]] = {}

    def __call__(self, request: HttpRequest, settings: Settings) -> Prepared:
        """Encode a plugin's request.

        Raises:
            PluginContractError: the URL leaves the endpoint's origin, or a header cannot be sent.
            InvalidInput: the body holds something that JSON does not have.
        """
        body = None if request.json is None else _encode(request.json)
        key = (settings.base_url, request.path, body is None, *request.headers.items())
        try:
            found = self._checked.get(key)
        except TypeError:
            # Something in it is no text, which is said below.
            found = None
        if found is None:
            found = _checked(request, settings, self._own)
            # A path with a cursor, a token that changes by the hour.
            if len(self._checked) >= _MOST_CHECKED:
                self._checked.clear()
            self._checked[key] = found
        url, headers = found
        return Prepared(method=request.method, url=url, headers=headers, body=body)


def prepare(request: HttpRequest, settings: Settings) -> Prepared:
    """As a `Preparer`, for once."""
    return Preparer()(request, settings)


def _checked(
    request: HttpRequest, settings: Settings, own: Mapping[str, str]
) -> tuple[str, Mapping[str, str]]:
    headers = {**own, **request.headers}
    if request.json is not None:
        headers["content-type"] = "application/json"
    _check_headers(headers, settings)
    return _url(request.path, settings), headers


def conditional(request: HttpRequest, call: Call) -> HttpRequest:
    """The request, asking for an answer only if there is a new one, where the call knows an old one."""
    if not isinstance(call, CatalogCall) or call.etag is None:
        return request
    return evolve(request, headers={**request.headers, "if-none-match": call.etag})


def _encode(value: object) -> bytes:
    try:
        return encoder.encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        # Its message names the type that has no JSON, and no value.
        raise InvalidInput(
            f"the request cannot be written as JSON: {type(error).__name__}; check `extra`."
        ) from None


def _check_headers(headers: Mapping[str, str], settings: Settings) -> None:
    for name, value in headers.items():
        if not (isinstance(value, str) and _HEADER_NAME.match(name) and _HEADER_VALUE.match(value)):
            # The value is not shown: it may be the key.
            raise PluginContractError(
                f"the plugin of {settings.provider!r} wants to send a header {name!r:.60} that HTTP does not allow.",
                provider=settings.provider,
            )


def _url(path: str, settings: Settings) -> str:
    if "://" not in path.partition("?")[0]:
        url = (settings.base_url or _IN_PROCESS) + (path if path.startswith(("/", "?")) else f"/{path}")
    else:
        url = path
        if origin(url) != origin(settings.base_url):
            raise PluginContractError(
                f"the plugin of {settings.provider!r} wants to send to {origin(url)}, which is not the "
                f"endpoint's origin {origin(settings.base_url)}.",
                provider=settings.provider,
            )
    if not _PATH.match(url):
        raise PluginContractError(
            f"the plugin of {settings.provider!r} built a URL with characters that must be escaped.",
            provider=settings.provider,
        )
    return url


def origin(url: str) -> str:
    """Scheme, host and port of a URL."""
    scheme, _, rest = url.partition("://")
    host = re.split(r"[/?#\\]", rest, maxsplit=1)[0]
    return f"{scheme.lower()}://{host.lower()}"
