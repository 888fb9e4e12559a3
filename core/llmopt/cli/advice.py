"""What to do about an endpoint that does not answer as it should."""

from __future__ import annotations

from typing import Final

from llmopt.errors import (
    AttemptTimeout,
    AuthError,
    ConnectFailed,
    ConnectionLost,
    DeadlineExceeded,
    InvalidResponse,
    LLMOptError,
    NotFound,
    Overloaded,
    PermissionDenied,
    QuotaExhausted,
    RateLimited,
    RequestTimeout,
    ServerError,
    UnexpectedStatus,
)

_CAUSES: Final = {
    "dns": "check the host name in base_url, and this machine's network",
    "refused": "start the server, or correct the port in base_url",
    "tls": "check the server's certificate, this machine's clock, and whether base_url should begin with http://",
    "timeout": "see whether a firewall or a missing proxy setting is in the way",
    "proxy": "check the proxy in HTTPS_PROXY, or name the host in NO_PROXY",
}
_KINDS: Final[tuple[tuple[type[LLMOptError], str], ...]] = (
    (PermissionDenied, "the key is valid and may not list models; embedding may work all the same"),
    (NotFound, "check the path of base_url; a server without a list of models may embed all the same"),
    (UnexpectedStatus, "check base_url: something else than the provider answers there"),
    (InvalidResponse, "check base_url: something else than the provider answers there"),
    (QuotaExhausted, "see the billing page of the provider"),
    (RateLimited, "wait a little, or lower rpm in the configuration"),
    (DeadlineExceeded, "try again, with a larger --deadline"),
    (AttemptTimeout, "try again, with a larger --deadline"),
    (ConnectionLost, "try again; if it stays, see the log of the server or of the proxy before it"),
    (Overloaded, "try again later; the provider's status page may say more"),
    (RequestTimeout, "try again later; the provider's status page may say more"),
    (ServerError, "try again later; the provider's status page may say more"),
)


def advice_for(error: LLMOptError, key_source: str) -> str:
    """What to do about an error, in half a sentence; "" where nothing is known to help.

    Args:
        error: what the endpoint answered, or did not.
        key_source: where its key comes from, in words.
    """
    if isinstance(error, ConnectFailed):
        return _CAUSES.get(error.cause, "check base_url, and this machine's network")
    if isinstance(error, AuthError):
        return f"check the key ({key_source})" if key_source else "set a key: this server wants one"
    return next((advice for kind, advice in _KINDS if isinstance(error, kind)), "")
