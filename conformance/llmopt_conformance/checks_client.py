"""Checks of the plugin through llmopt's client, from end to end, with a server in memory."""

from __future__ import annotations

from typing import Any, Final

from llmopt import Client
from llmopt.errors import (
    AuthError,
    ConfigError,
    InvalidResponse,
    Overloaded,
    QuotaExhausted,
    RequestTimeout,
    ServerError,
)
from llmopt.testing.dialect import single, vector_of
from llmopt.testing.harness import origin
from llmopt_conformance.fixtures import (
    DIMENSIONS,
    MODELS,
    STRAIGHT,
    PretendedServer,
    embed,
    fails,
    ready,
    run,
)
from llmopt_conformance.observe import ADDED, HeaderWrapper
from llmopt_conformance.subject import KEY, TEXTS, Family, NotApplicable, Subject, expect, order_of

client_checks: Final = Family("client")
_DOUBLED: Final = (TEXTS[0], TEXTS[1], TEXTS[0])


def _expect_rows(found: Any, texts: tuple[str, ...]) -> None:
    expected = [vector_of(text, DIMENSIONS) for text in texts]
    rows = [single(row) for row in found.vectors.tolist()]
    wrong = [index for index, row in enumerate(rows) if row != expected[index]]
    expect(
        len(rows) == len(texts) and not wrong, f"of {len(texts)} texts those at {wrong} have wrong vectors."
    )


@client_checks("embed")
def _embeds(subject: Subject) -> None:
    """Texts come back as vectors in their order; a text that is there twice is sent once."""
    server = PretendedServer(subject, TEXTS)
    found = embed(subject, server, _DOUBLED)
    _expect_rows(found, _DOUBLED)
    expect(not found.errors, f"there are errors: {found.errors}.")
    times = [order_of(TEXTS, sent.json).count(0) for sent in server.sent]
    expect(sum(times) == 1, f"the text that is there twice was sent {sum(times)} times.")


@client_checks("batches")
def _batches(subject: Subject) -> None:
    """Texts that need several requests come back in their order."""
    server = PretendedServer(subject, TEXTS)
    _expect_rows(embed(subject, server, TEXTS, max_batch_size=2), TEXTS)
    expect(
        len(server.sent) >= 3, f"{len(TEXTS)} texts, two a request, went out in {len(server.sent)} requests."
    )


@client_checks("list")
def _lists(subject: Subject) -> None:
    """The models of the provider are listed, under its name."""
    subject.without("catalog")
    server = PretendedServer(subject)
    found = run(subject, server, lambda client: client.list_models(subject.name))
    expect(
        [model.id for model in found] == list(MODELS), f"of {list(MODELS)} it lists {[m.id for m in found]}."
    )
    expect(all(model.provider == subject.name for model in found), "a model has another provider's name.")


@client_checks("sync")
def _sync(subject: Subject) -> None:
    """The synchronous client does the same."""
    subject.without("embeddings")
    server = PretendedServer(subject, TEXTS)
    with ready(subject) as config, Client(config, transport=server.transport, flags=STRAIGHT) as client:
        _expect_rows(client.embed(f"{subject.name}/{subject.samples.model}", _DOUBLED), _DOUBLED)


@client_checks("wrong-key")
def _wrong_key(subject: Subject) -> None:
    """A 401 is an AuthError that names the provider and holds no key."""
    error = fails((AuthError,), lambda: embed(subject, PretendedServer(subject, TEXTS, status=401), _DOUBLED))
    expect(error.provider == subject.name, f"the error names the provider {error.provider!r}.")
    expect(KEY not in f"{error!r}{error}{vars(error)}", "the error holds the key.")


@client_checks("no-money")
def _no_money(subject: Subject) -> None:
    """A 402 is a QuotaExhausted, after one request."""
    server = PretendedServer(subject, TEXTS, status=402)
    fails((QuotaExhausted,), lambda: embed(subject, server, _DOUBLED))
    posts = [sent for sent in server.sent if sent.method == "POST"]
    expect(len(posts) == 1, f"{len(posts)} requests were sent.")


@client_checks("server-error")
def _server_error(subject: Subject) -> None:
    """A 500 is a ServerError, or another that is worth trying again."""
    fails(
        (ServerError, Overloaded, RequestTimeout),
        lambda: embed(subject, PretendedServer(subject, TEXTS, status=500), _DOUBLED),
    )


@client_checks("wrong-count")
def _wrong_count(subject: Subject) -> None:
    """An answer with a vector too few is an InvalidResponse; no vector comes to another text."""
    fails((InvalidResponse,), lambda: embed(subject, PretendedServer(subject, TEXTS, missing=1), _DOUBLED))


@client_checks("no-key")
def _no_key(subject: Subject) -> None:
    """Without the key that it needs it is a ConfigError, and nothing is sent."""
    if not subject.profile.key_required or subject.profile.auth == "none":
        raise NotApplicable("this provider needs no key")
    server = PretendedServer(subject, TEXTS)
    fails((ConfigError, AuthError), lambda: embed(subject, server, _DOUBLED, api_key=None))
    expect(not server.sent, f"{len(server.sent)} requests were sent.")


@client_checks("sent")
def _sent(subject: Subject) -> None:
    """What reaches the wire goes to the endpoint's origin, with the key in a header only."""
    server = PretendedServer(subject, TEXTS)
    embed(subject, server, _DOUBLED)
    own = origin(subject.settings().base_url)
    expect(server.sent, "nothing was sent over the transport.")
    for sent in server.sent:
        expect(origin(sent.url) == own, f"a request went to {origin(sent.url)}; the endpoint is {own}.")
        expect(KEY not in sent.url and KEY.encode() not in sent.body, "the key is in a URL or a body.")


@client_checks("wrapped")
def _wrapped(subject: Subject) -> None:
    """A user's wrapper plugin can add a header to every request."""
    subject.without("embeddings")
    server = PretendedServer(subject, TEXTS)
    model = f"{subject.name}/{subject.samples.model}"
    run(subject, server, lambda client: client.embed(model, TEXTS[:1]), wrappers=(HeaderWrapper(),))
    seen = [sent.headers.get(name) for sent in server.sent if sent.method == "POST" for name in ADDED]
    expect(seen == list(ADDED.values()), f"the wrapper's header arrives as {seen}.")
