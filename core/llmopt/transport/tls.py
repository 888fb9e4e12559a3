"""TLS contexts: the certificate authorities that an endpoint trusts, and the certificate that it shows.

It reads the files that the configuration names, at each call, blocking the caller's thread; OpenSSL reads a folder of
authorities during handshakes. Without ``ca_file`` it loads the system's authorities, which SSL_CERT_FILE and
SSL_CERT_DIR in the environment replace; SSLKEYLOGFILE there names a file that the keys of connections are written to.
A module-level ``lru_cache``, which all clients share, keeps the last 32 contexts or problems. No message and no
traceback contains the content of a file.
"""

from __future__ import annotations

import os
import ssl
import stat
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from llmopt.config.schema import EnvText, join_path
from llmopt.errors import ConfigError

if TYPE_CHECKING:
    from llmopt.config.resolve import Endpoint

_KEYS: Final = ("ca_file", "client_cert", "client_key")
_CERTIFICATES: Final = (b"-----BEGIN CERTIFICATE-----", b"-----BEGIN TRUSTED CERTIFICATE-----")
_PRIVATE_KEY: Final = b"PRIVATE KEY-----"
_ENCRYPTED: Final = b"ENCRYPTED"
_MAX_CONTEXTS: Final = 32


def tls_context(endpoint: Endpoint) -> ssl.SSLContext | None:
    """Return the context for https to an endpoint; None for the usual one, with the system's authorities.

    All endpoints with the same files share one context: making one takes milliseconds. A file that was replaced
    since then makes a new one.

    Raises:
        ConfigError: a file cannot be used; the message names the key and the file.
    """
    files = {key: path for key in _KEYS if (path := getattr(endpoint, key)) is not None}
    if not files:
        return None
    made: ssl.SSLContext | _Problem | None = next(filter(None, (_problem(key, files) for key in files)), None)
    if made is None:
        made = _make_context(*map(files.get, _KEYS), tuple(map(_version, files.values())))
    if isinstance(made, ssl.SSLContext):
        return made
    path = files[made.key]
    variable = f" (environment variable {path.variable})" if isinstance(path, EnvText) else ""
    raise ConfigError(f"{join_path(endpoint.path, made.key)}{variable}: the file {str(path)!a} {made.words}.")


def default_context() -> ssl.SSLContext:
    """Return the usual context, with the system's authorities; one for all, because loading those takes milliseconds.

    Raises:
        ConfigError: the file that SSL_CERT_FILE names cannot be used.
    """
    made = _make_context(None, None, None, ())
    if isinstance(made, ssl.SSLContext):
        return made
    raise ConfigError("the certificate authorities of the system cannot be read; check SSL_CERT_FILE.")


class _Problem(NamedTuple):
    """What is wrong with the file that a key names. Returned, not raised: a traceback would show the content."""

    key: str
    words: str


def _version(path: str) -> tuple[int, int, int]:
    """What changes when a file is replaced."""
    status = Path(path).stat()
    return status.st_ino, status.st_mtime_ns, status.st_size


def _problem(key: str, files: Mapping[str, str]) -> _Problem | None:
    """What is wrong with a file by itself."""
    path = Path(files[key])
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return None if key == "ca_file" else _Problem(key, "is a folder; name the file in it")
        # Reading a pipe would wait for its writer.
        if not stat.S_ISREG(mode):
            return _Problem(key, "is a device or a pipe")
        words = _content_problem(key, path.read_bytes(), own_key="client_key" not in files)
    except OSError as error:
        words = f"cannot be read: {os.strerror(error.errno or 0).lower()}"
    return _Problem(key, words) if words else None


def _content_problem(key: str, content: bytes, *, own_key: bool) -> str:
    """What is missing in a file; ``own_key`` if the client's certificate and its private key are in one file."""
    if key != "client_key" and not any(word in content for word in _CERTIFICATES):
        return "contains no certificate in PEM form (-----BEGIN CERTIFICATE-----)"
    if key == "ca_file" or (key == "client_cert" and not own_key):
        return ""
    if _PRIVATE_KEY not in content:
        other = "; name the file that does in client_key" if key == "client_cert" else ""
        return f"contains no private key in PEM form{other}"
    encrypted = _ENCRYPTED in content
    return "is protected by a password; store the key without one, readable by you alone" if encrypted else ""


@lru_cache(maxsize=_MAX_CONTEXTS)
def _make_context(
    ca_file: str | None, client_cert: str | None, client_key: str | None, _versions: tuple[object, ...]
) -> ssl.SSLContext | _Problem:
    try:
        if ca_file is None:
            context = ssl.create_default_context()
        elif Path(ca_file).is_dir():
            context = ssl.create_default_context(capath=ca_file)
        else:
            context = ssl.create_default_context(cafile=ca_file)
    except OSError:  # ssl.SSLError too
        return _Problem("ca_file", "contains a damaged certificate")
    if ca_file is not None:
        # Since Python 3.13 an intermediate authority, or the server's own certificate, may be named alone; here always.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    # A server that could choose HTTP/2 would speak it.
    context.set_alpn_protocols(["http/1.1"])
    if client_cert is None:
        return context
    try:
        # Without a password OpenSSL would ask for one on the terminal.
        context.load_cert_chain(client_cert, client_key, password="")
    except OSError as error:
        if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
            key = "client_key" if client_key else "client_cert"
            return _Problem(key, "contains the private key of another certificate")
        return _Problem("client_cert", "or the file of its private key is damaged")
    return context
