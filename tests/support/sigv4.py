"""AWS Signature Version 4 (AWS General Reference, "Create a signed AWS API request"): what a plugin signs with, and a server's check.

The check starts from the bytes that arrived and shares with the signer nothing but the derivation of the key.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from datetime import UTC, datetime
from urllib.parse import parse_qsl, quote, urlsplit

from tests.support.faults.request import Request


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _key(secret: str, *scope: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for each in scope:
        key = hmac.digest(key, each.encode(), "sha256")
    return key


def sign(
    method: str, url: str, body: bytes, *, key_id: str, secret: str, region: str, service: str, now: float
) -> dict[str, str]:
    """The headers of a signed request: date and authorization."""
    parts, time = urlsplit(url), datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%SZ")
    # Every service but S3 takes the path escaped once more.
    path = quote(parts.path or "/", safe="/-_.~")
    query = "&".join(
        f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}"
        for name, value in sorted(parse_qsl(parts.query, keep_blank_values=True))
    )
    canonical = (
        f"{method}\n{path}\n{query}\nhost:{parts.netloc}\nx-amz-date:{time}\n\nhost;x-amz-date\n{_hash(body)}"
    )
    scope = (time[:8], region, service, "aws4_request")
    to_sign = f"AWS4-HMAC-SHA256\n{time}\n{'/'.join(scope)}\n{_hash(canonical.encode())}"
    signature = hmac.digest(_key(secret, *scope), to_sign.encode(), "sha256").hex()
    return {
        "x-amz-date": time,
        "authorization": f"AWS4-HMAC-SHA256 Credential={key_id}/{'/'.join(scope)}, "
        f"SignedHeaders=host;x-amz-date, Signature={signature}",
    }


_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(\w+)/(\d{8}/[\w-]+/[\w-]+/aws4_request), SignedHeaders=([a-z0-9;-]+), Signature=(\w+)"
)


def problem(request: Request, secrets: dict[str, str], now: float) -> str | None:
    """Why a service refuses a request, None if its signature is right: AWS allows five minutes of difference."""
    found = _AUTHORIZATION.fullmatch(request.header("authorization") or "")
    if found is None:
        return "IncompleteSignatureException"
    key_id, scope, names, signature = found.groups()
    stated = request.header("x-amz-date") or ""
    made = datetime.strptime(stated, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
    if abs(made - now) > 300 or not {"host", "x-amz-date"} <= set(names.split(";")):
        return "InvalidSignatureException: Signature expired"
    target, _, query = request.target.partition("?")
    lines = [request.method, quote(target, safe="/-_.~"), "&".join(sorted(query.split("&"))) if query else ""]
    lines += [f"{name}:{' '.join((request.header(name) or '').split())}" for name in names.split(";")]
    lines += ["", names, _hash(request.body)]
    to_sign = f"AWS4-HMAC-SHA256\n{stated}\n{scope}\n{_hash(chr(10).join(lines).encode())}"
    expected = hmac.digest(_key(secrets[key_id], *scope.split("/")), to_sign.encode(), "sha256").hex()
    return None if hmac.compare_digest(expected, signature) else "InvalidSignatureException: does not match"
