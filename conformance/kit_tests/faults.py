"""Planted faults: the mistakes of plugin authors that the kit must find."""

from __future__ import annotations

from kit_tests.planted import Fault

FAULTS = (
    Fault(
        name="key in the URL",
        hook="build_request",
        source="""
@hookimpl
def build_request(call: Call, settings: Settings) -> HttpRequest:
    request = compatible.build_request(call, settings)
    key = settings.credential.reveal() if settings.credential else ""
    return evolve(request, path=f"{request.path}?key={key}")
""",
        check="secrets.key-not-in-url",
        says="the key is in the URL",
    ),
    Fault(
        name="key in the body",
        hook="build_request",
        source="""
@hookimpl
def build_request(call: Call, settings: Settings) -> HttpRequest:
    request = compatible.build_request(call, settings)
    if request.json is None:
        return request
    key = settings.credential.reveal() if settings.credential else ""
    return evolve(request, json={**request.json, "user": key})
""",
        check="secrets.key-not-in-body",
        says="the key is in the body",
    ),
    Fault(
        name="no key at all",
        hook="build_request",
        source="""
@hookimpl
def build_request(call: Call, settings: Settings) -> HttpRequest:
    return evolve(compatible.build_request(call, settings), headers=dict(settings.headers))
""",
        check="secrets.key-in-header",
        says="no header holds the key",
    ),
    Fault(
        name="Bearer None without a key",
        hook="build_request",
        source="""
@hookimpl
def build_request(call: Call, settings: Settings) -> HttpRequest:
    key = settings.credential.reveal() if settings.credential else None
    headers = {**settings.headers, "authorization": f"Bearer {key}"}
    return evolve(compatible.build_request(call, settings), headers=headers)
""",
        check="secrets.no-key",
        says="the header authorization is sent without a key",
    ),
    Fault(
        name="a count of a wrong type",
        hook="batch_limit",
        source="""
@hookimpl
def batch_limit() -> BatchLimit:
    return BatchLimit(max_items=16.0)
""",
        check="limits.types",
        says=r"max_items is '16.0' \(float\); expected int \| None",
    ),
    Fault(
        name="a request that costs less for more texts",
        hook="",
        source="""
from llmopt import RequestCost

@hookimpl
def request_cost(call: Call) -> RequestCost:
    texts = getattr(call, "texts", ())
    return RequestCost(requests=100 - len(texts))
""",
        check="limits.cost",
        says="2 texts have requests=98, fewer 99",
    ),
    Fault(
        name="a cost without end",
        hook="",
        source="""
from llmopt import RequestCost

@hookimpl
def request_cost() -> RequestCost:
    return RequestCost(tokens=float("inf"))
""",
        check="limits.cost",
        says="of a EmbedCall: .*tokens=inf",
    ),
    Fault(
        name="a number instead of a BatchLimit",
        hook="batch_limit",
        source="""
@hookimpl
def batch_limit() -> BatchLimit:
    return 16
""",
        check="limits.types",
        says="hook batch_limit returned int; expected BatchLimit",
    ),
    Fault(
        name="I/O in a hook: a file",
        hook="batch_limit",
        source="""
@hookimpl
def batch_limit() -> BatchLimit:
    with open("/dev/null") as file:
        return BatchLimit(max_items=len(file.read()) + 1)
""",
        check="purity.no-files",
        says=r"batch_limit \(for a model\) does file I/O: io.open\(\) at llmopt_plugin_planted\d+/__init__.py:\d+",
    ),
    Fault(
        name="I/O in a hook: the network",
        hook="rate_limits",
        source="""
@hookimpl
def rate_limits(response: HttpResponse) -> RateLimits:
    import socket
    socket.socket().close()
    return RateLimits()
""",
        check="purity.no-network",
        says="rate_limits .* does network I/O: socket",
    ),
    Fault(
        name="a process started in a hook",
        hook="classify_error",
        source="""
@hookimpl
def classify_error(failure: Failure) -> Verdict:
    import subprocess
    subprocess.run(["true"], check=True)
    return compatible.classify(failure)
""",
        check="purity.no-processes",
        says="classify_error .* starts or signals a process: subprocess.Popen",
    ),
    Fault(
        name="sleeping in a hook",
        hook="classify_error",
        source="""
from time import sleep as nap

@hookimpl
def classify_error(failure: Failure) -> Verdict:
    nap(0)
    return compatible.classify(failure)
""",
        check="purity.no-sleep",
        says=r"classify_error .* sleeps: time.sleep\(\)",
    ),
    Fault(
        name="the clock in a request",
        hook="build_request",
        source="""
from time import time as now

@hookimpl
def build_request(call: Call, settings: Settings) -> HttpRequest:
    request = compatible.build_request(call, settings)
    return evolve(request, headers={**request.headers, "x-sent": str(now())})
""",
        check="purity.no-clock",
        says=r"build_request .* depends on the time: time.time\(\)",
    ),
    Fault(
        name="randomness in a request",
        hook="build_request",
        source="""
@hookimpl
def build_request(call: Call, settings: Settings) -> HttpRequest:
    import uuid
    request = compatible.build_request(call, settings)
    return evolve(request, headers={**request.headers, "x-id": uuid.uuid4().hex})
""",
        check="purity.no-randomness",
        says="build_request .* depends on chance",
    ),
    Fault(
        name="the environment read in a hook",
        hook="build_request",
        source="""
@hookimpl
def build_request(call: Call, settings: Settings) -> HttpRequest:
    import os
    team = os.environ.get("ACME_TEAM", "")
    request = compatible.build_request(call, settings)
    return evolve(request, headers={**request.headers, "x-team": team})
""",
        check="purity.no-environment",
        says="build_request .* reads the environment",
    ),
    Fault(
        name="state kept between calls",
        hook="build_request",
        source="""
_COUNT = []

@hookimpl
def build_request(call: Call, settings: Settings) -> HttpRequest:
    _COUNT.append(1)
    request = compatible.build_request(call, settings)
    return evolve(request, headers={**request.headers, "x-count": str(len(_COUNT))})
""",
        check="purity.repeats",
        says="build_request .* gave two different answers to the same question",
    ),
    Fault(
        name="a changed argument",
        hook="build_request",
        source="""
@hookimpl
def build_request(call: Call, settings: Settings) -> HttpRequest:
    settings.headers["x-acme"] = "1"
    return compatible.build_request(call, settings)
""",
        check="purity.arguments",
        says="build_request .* changed its argument settings",
    ),
    Fault(
        name="a response changed while it is parsed",
        hook="parse_catalog",
        source="""
@hookimpl
def parse_catalog(response: HttpResponse) -> CatalogPage | Failure:
    if isinstance(response.json, dict):
        response.json.pop("object", None)
    return compatible.parse_catalog(response)
""",
        check="purity.arguments",
        says="parse_catalog .* changed its argument response",
    ),
    Fault(
        name="one dictionary for all requests",
        hook="build_request",
        source="""
_HEADERS: dict[str, str] = {}

@hookimpl
def build_request(call: Call, settings: Settings) -> HttpRequest:
    request = compatible.build_request(call, settings)
    _HEADERS.update(request.headers)
    return evolve(request, headers=_HEADERS)
""",
        check="purity.nothing-shared",
        says="build_request .* returns a dictionary that is not new: changing it changes a later result",
    ),
    Fault(
        name="the settings' own dictionary in a request",
        hook="build_request",
        source="""
@hookimpl
def build_request(call: Call, settings: Settings) -> HttpRequest:
    return evolve(compatible.build_request(call, settings), headers=settings.headers)
""",
        check="purity.nothing-shared",
        says="changing it changes an argument",
    ),
    Fault(
        name="something that one thread alone has",
        hook="batch_limit",
        source="""
import threading

_own = threading.local()
_own.items = 16


@hookimpl
def batch_limit() -> BatchLimit:
    return BatchLimit(max_items=_own.items)
""",
        check="purity.threads",
        says=r"with other threads beside it, another answer comes from batch_limit \(for a model\)",
    ),
    Fault(
        name="a spent quota classified as retryable",
        hook="classify_error",
        source="""
@hookimpl
def classify_error(failure: Failure) -> Verdict:
    if failure.status == 429:
        return Verdict(kind=VerdictKind.RATE_LIMITED, message=failure.error.message)
    return compatible.classify(failure)
""",
        check="errors.quota",
        says=r"quota-429 \(HTTP 429\): the verdict is RATE_LIMITED, not QUOTA_EXHAUSTED",
    ),
    Fault(
        name="Retry-After that changes the verdict",
        hook="classify_error",
        source="""
@hookimpl
def classify_error(failure: Failure) -> Verdict:
    if "retry-after" in failure.headers:
        return Verdict(kind=VerdictKind.RATE_LIMITED)
    return compatible.classify(failure)
""",
        check="errors.headers-invite",
        says="becomes RATE_LIMITED when it comes with Retry-After",
    ),
    Fault(
        name="an exception for an unexpected error body",
        hook="classify_error",
        source="""
@hookimpl
def classify_error(failure: Failure) -> Verdict:
    import json
    code = json.loads(failure.body)["error"]["code"]
    return Verdict(kind=VerdictKind.AUTH if code == "bad_key" else VerdictKind.TRANSIENT)
""",
        check="errors.nonsense",
        says="for status 400 with an empty body: .*hook classify_error raised JSONDecodeError",
    ),
    Fault(
        name="a dictionary instead of a Verdict",
        hook="classify_error",
        source="""
@hookimpl
def classify_error(failure: Failure) -> Verdict:
    return {"kind": "auth", "status": failure.status}
""",
        check="errors.types",
        says="hook classify_error returned dict; expected Verdict",
    ),
    Fault(
        name="a request to another origin",
        hook="build_request",
        source="""
@hookimpl
def build_request(call: Call, settings: Settings) -> HttpRequest:
    request = compatible.build_request(call, settings)
    return evolve(request, path="https://collect.example/v1" + request.path)
""",
        check="request.origin",
        says="goes to https://collect.example; the endpoint is https://api.acme.example",
    ),
    Fault(
        name="a missing text",
        hook="build_request",
        source="""
@hookimpl
def build_request(call: Call, settings: Settings) -> HttpRequest:
    if isinstance(call, EmbedCall) and len(call.texts) > 1:
        call = evolve(call, texts=call.texts[:-1])
    return compatible.build_request(call, settings)
""",
        check="request.every-text",
        says="build_request left out text 4 of 5",
    ),
    Fault(
        name="texts in another order",
        hook="build_request",
        source="""
@hookimpl
def build_request(call: Call, settings: Settings) -> HttpRequest:
    if isinstance(call, EmbedCall):
        call = evolve(call, texts=tuple(sorted(call.texts)))
    return compatible.build_request(call, settings)
""",
        check="request.text-order",
        says="build_request reordered the texts",
    ),
    Fault(
        name="altered texts",
        hook="build_request",
        source="""
@hookimpl
def build_request(call: Call, settings: Settings) -> HttpRequest:
    if isinstance(call, EmbedCall):
        call = evolve(call, texts=tuple(text.strip() for text in call.texts))
    return compatible.build_request(call, settings)
""",
        check="request.text-unchanged",
        says="text 4 of 6 .* is not in the body as it is",
    ),
    Fault(
        name="ignored dimensions",
        hook="build_request",
        source="""
@hookimpl
def build_request(call: Call, settings: Settings) -> HttpRequest:
    if isinstance(call, EmbedCall):
        call = evolve(call, dimensions=None)
    return compatible.build_request(call, settings)
""",
        check="request.dimensions",
        says="dimensions=1357 is not in the request",
    ),
    Fault(
        name="a model without escaping",
        hook="build_request",
        source="""
@hookimpl
def build_request(call: Call, settings: Settings) -> HttpRequest:
    request = compatible.build_request(call, settings)
    return evolve(request, path=f"/models/{call.model}{request.path}") if call.model else request
""",
        check="request.model-escaped",
        says="characters that must be escaped",
    ),
    Fault(
        name="a header with a line break",
        hook="build_request",
        source="""
@hookimpl
def build_request(call: Call, settings: Settings) -> HttpRequest:
    request = compatible.build_request(call, settings)
    return evolve(request, headers={**request.headers, "x-acme": "a\\r\\nx-other: b"})
""",
        check="secrets.headers-valid",
        says=r"the header x-acme holds a line break \(CR or LF\)",
    ),
    Fault(
        name="a hook that is misspelled",
        source="""
@hookimpl
def batch_limits() -> BatchLimit:
    return BatchLimit(max_items=1)
""",
        check="discovery.spelling",
        says="there is no hook 'batch_limits'; did you mean batch_limit",
    ),
    Fault(
        name="a missing marker",
        hook="classify_error",
        source="""
def classify_error(failure: Failure) -> Verdict:
    return compatible.classify(failure)
""",
        check="discovery.markers",
        says="classify_error is named like a hook and lacks @llmopt.hookimpl",
    ),
    Fault(
        name="an unknown parameter",
        hook="batch_limit",
        source="""
@hookimpl
def batch_limit(model: str) -> BatchLimit:
    return BatchLimit(max_items=1)
""",
        check="discovery.parameters",
        says=r"batch_limit has the parameter model; the hook is batch_limit\(call, settings\)",
    ),
    Fault(
        name="a hook that is a coroutine",
        hook="classify_error",
        source="""
@hookimpl
async def classify_error(failure: Failure) -> Verdict:
    return compatible.classify(failure)
""",
        check="discovery.plain-functions",
        says="classify_error is a coroutine function",
    ),
    Fault(
        name="an ignored index",
        hook="parse_embeddings",
        source="""
@hookimpl
def parse_embeddings(call: EmbedCall, response: HttpResponse) -> EmbeddedRows | Failure:
    rows = compatible.parse_embeddings(call, response)
    return rows if isinstance(rows, Failure) else evolve(rows, indices=None)
""",
        check="embeddings.order",
        says="the vectors are at the wrong texts: the index is not used",
    ),
    Fault(
        name="an exception for a page of HTML",
        hook="parse_embeddings",
        source="""
@hookimpl
def parse_embeddings(call: EmbedCall, response: HttpResponse) -> EmbeddedRows | Failure:
    import json
    json.loads(response.body)
    return compatible.parse_embeddings(call, response)
""",
        check="embeddings.html",
        says="hook parse_embeddings raised JSONDecodeError",
    ),
    Fault(
        name="a bad entry in a list",
        hook="parse_catalog",
        source="""
@hookimpl
def parse_catalog(response: HttpResponse) -> CatalogPage | Failure:
    models = tuple(compatible.model_from_entry(entry) for entry in response.json["data"])
    return CatalogPage(models=models)
""",
        check="catalog.malformed-entries",
        says=r"CatalogPage.models\[1\] is 'None' \(NoneType\); expected Model",
    ),
    Fault(
        name="an ignored cursor",
        hook="build_request",
        source="""
@hookimpl
def build_request(call: Call, settings: Settings) -> HttpRequest:
    request = compatible.build_request(call, settings)
    return evolve(request, path=request.path.partition("?")[0])
""",
        check="catalog.cursor",
        says="does not name it: '/models'",
    ),
    Fault(
        name="a dictionary instead of a Profile",
        hook="provider_profile",
        source="""
@hookimpl
def provider_profile() -> Profile:
    return {"base_url": "https://api.acme.example/v1"}
""",
        check="profile.any-entry",
        says="hook provider_profile returned dict; expected Profile",
    ),
    Fault(
        name="a base URL without encryption",
        hook="provider_profile",
        source="""
@hookimpl
def provider_profile() -> Profile:
    return Profile(base_url="http://api.acme.example/v1", key_env=("ACME_API_KEY",))
""",
        check="profile.base-url",
        says="base_url begins with 'http'",
    ),
    Fault(
        name="an operation that there is not",
        hook="provider_profile",
        source="""
@hookimpl
def provider_profile() -> Profile:
    operations = frozenset({"embedding", "chat"})
    return Profile(base_url="https://api.acme.example/v1", key_env=("ACME_API_KEY",), operations=operations)
""",
        check="profile.operations",
        says="operations has 'embedding'",
    ),
    Fault(
        name="a key in the base URL",
        hook="provider_profile",
        source="""
@hookimpl
def provider_profile() -> Profile:
    return Profile(base_url="https://api.acme.example/v1?key=shared", key_env=("ACME_API_KEY",))
""",
        check="profile.no-key-in-url",
        says="base_url holds a query",
    ),
    Fault(
        name="a slow import at module level",
        source="""
import httpx
""",
        check="import.light",
        says="it imports .*httpx",
    ),
    Fault(
        name="the environment read at import",
        source="""
import os
KEY = os.environ.get("ACME_API_KEY")
""",
        check="import.no-environment",
        says="importing it reads the environment: os.environ",
    ),
    Fault(
        name="a thread started at import",
        source="""
import threading
threading.Thread(target=threading.Event().wait, args=(0.1,), daemon=True).start()
""",
        check="import.no-threads",
        says="importing it starts a thread or process",
    ),
    Fault(
        name="a private name of llmopt",
        source="""
from llmopt.engine.request import RequestEncoder
""",
        check="package.public-modules",
        says="imports llmopt.engine.request RequestEncoder, which is not public",
    ),
    Fault(
        name="pluggy's marker instead of llmopt's",
        source="""
import pluggy
""",
        check="package.no-pluggy",
        says="imports pluggy",
    ),
)  # fmt: skip
