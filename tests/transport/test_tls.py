"""Files of certificates: own authorities, client certificates, and every way in which such a file can be wrong."""

from __future__ import annotations

import socket
import ssl
import threading
import traceback
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import llmopt
from llmopt.errors import ConfigError, ConnectFailed, ConnectionLost
from llmopt.transport import tls
from llmopt.transport.tls import tls_context
from tests.config.helpers import one
from tests.support.faults import Answer, FaultServer, Framing, answer_openai
from tests.support.faults.tls import Certificate, can_make_certificates, good_certificate
from tests.support.scale import scaled
from tests.transport.helpers import HEADERS, embed_request, embed_request_to, expect_error, open_pool

pytestmark = pytest.mark.skipif(not can_make_certificates(), reason="neither trustme nor openssl is here")
SERVER, CLIENT = (good_certificate(), good_certificate()) if can_make_certificates() else (None, None)
KEY, CHAIN = "", ""
if CLIENT is not None:
    KEY, _, CHAIN = CLIENT.key_and_chain.partition("-----BEGIN CERTIFICATE-----")
    CHAIN = f"-----BEGIN CERTIFICATE-----{CHAIN}"


def context_of(**files: Path) -> ssl.SSLContext | None:
    """The context of an endpoint with these files."""
    return tls_context(one({key: str(path) for key, path in files.items()}))


def problem_of(**files: Path) -> str:
    """The message about these files; no line of any file is in it, or in a traceback with local variables."""
    with pytest.raises(ConfigError) as caught:
        context_of(**files)
    shown = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    for path in files.values():
        lines = path.read_text("latin-1").splitlines() if path.is_file() else []
        assert not any(line in shown for line in lines if len(line) > 40)
    return str(caught.value)


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Good files, by the key that names each."""
    return {
        "ca_file": write(tmp_path, "ca.pem", SERVER.authority),
        "client_cert": write(tmp_path, "cert.pem", CHAIN),
        "client_key": write(tmp_path, "key.pem", KEY),
    }


def test_without_files_the_usual_context_is_used() -> None:
    """The one that all clients of a process share."""
    assert context_of() is None


def test_endpoints_with_the_same_files_share_a_context(files: dict[str, Path]) -> None:
    """Until one of the files is replaced: certificates are renewed while programs run."""
    first = context_of(**files)
    assert context_of(**files) is first is not None
    assert context_of(ca_file=files["ca_file"]) is not first
    write(files["ca_file"].parent, "ca.pem", SERVER.authority * 2)
    assert context_of(**files) not in (first, None)


def test_a_folder_of_authorities_is_accepted(tmp_path: Path) -> None:
    """REQUESTS_CA_BUNDLE may name one."""
    context = context_of(ca_file=tmp_path)
    assert context is not None
    assert context.get_ca_certs() == []


WRONG: list[tuple[str, str | bytes | None, str]] = [
    ("ca_file", None, "cannot be read: no such file or directory"),
    ("ca_file", "", "contains no certificate in PEM form"),
    ("ca_file", b"\xff\x00 no PEM" * 50, "contains no certificate in PEM form"),
    ("ca_file", "DER", "contains no certificate in PEM form"),
    ("ca_file", KEY, "contains no certificate in PEM form"),
    ("ca_file", CHAIN[:300] + "\n-----END CERTIFICATE-----\n", "contains a damaged certificate"),
    ("client_cert", None, "cannot be read: no such file or directory"),
    ("client_cert", KEY, "contains no certificate in PEM form"),
    ("client_cert", CHAIN[:300] + "\n-----END CERTIFICATE-----\n", "is damaged"),
    ("client_key", None, "cannot be read: no such file or directory"),
    ("client_key", CHAIN, "contains no private key in PEM form"),
    ("client_key", KEY.replace("BEGIN ", "BEGIN ENCRYPTED "), "is protected by a password"),
    ("client_key", "other", "contains the private key of another certificate"),
]


@pytest.mark.row("S08")
@pytest.mark.parametrize(("key", "content", "message"), WRONG)
def test_a_wrong_file_is_an_error_that_names_key_and_file(
    key: str, content: str | bytes | None, message: str, files: dict[str, Path]
) -> None:
    """One error, before any connection."""
    if content is None:
        files[key].unlink()
    else:
        special: dict[object, Callable[[], str | bytes]] = {
            "DER": lambda: b64decode("".join(CHAIN.split("-----")[2].split())),
            "other": lambda: SERVER.key_and_chain.partition("-----BEGIN CERTIFICATE")[0],
        }
        write(files[key].parent, files[key].name, special.get(content, lambda: content)())
    problem = problem_of(**files)
    assert problem.startswith(
        "providers.acme.client_cert" if message == "is damaged" else f"providers.acme.{key}: "
    )
    assert str(files[key]) in problem
    assert message in problem


def test_a_certificate_and_its_key_may_be_in_one_file(tmp_path: Path) -> None:
    """Without a key there, the message says where to name it."""
    both = write(tmp_path, "both.pem", CLIENT.key_and_chain)
    assert context_of(client_cert=both) is not None
    assert "name the file that does in client_key" in problem_of(client_cert=write(tmp_path, "c.pem", CHAIN))


@pytest.mark.parametrize("key", ["client_cert", "client_key"])
def test_a_folder_is_no_certificate(key: str, files: dict[str, Path]) -> None:
    """Nor is a device, which might block the reader."""
    assert "is a folder" in problem_of(**{**files, key: files[key].parent})
    assert "is a device or a pipe" in problem_of(**{**files, key: Path("/dev/null")})


@pytest.mark.row("S08")
@settings(
    max_examples=scaled(60, nightly=1000),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    deadline=None,
)
@given(key=st.sampled_from(["ca_file", "client_cert", "client_key"]), data=st.data())
def test_a_file_that_is_cut_or_changed_anywhere_is_no_other_error(
    key: str, data: st.DataObject, files: dict[str, Path]
) -> None:
    """It is used, or refused with its name, and never shown."""
    content = bytearray({"ca_file": SERVER.authority, "client_cert": CHAIN, "client_key": KEY}[key].encode())
    start = data.draw(st.integers(0, len(content)))
    content[start : start + data.draw(st.integers(0, 200))] = data.draw(st.binary(max_size=20))
    write(files[key].parent, files[key].name, bytes(content))
    try:
        usable = context_of(**files) is not None
    except ConfigError:
        usable = False
    # Outside the except block, which would add this frame to the traceback.
    assert usable or "providers.acme.c" in problem_of(**files)


async def test_the_servers_own_certificate_may_be_named(tmp_path: Path) -> None:
    """On every Python; without its authority."""
    leaf = f"-----BEGIN CERTIFICATE-----{SERVER.key_and_chain.split('-----BEGIN CERTIFICATE-----')[1]}"
    context = context_of(ca_file=write(tmp_path, "leaf.pem", leaf))
    async with FaultServer(tls=SERVER.server()) as server, open_pool(tls=context) as pool:
        server.default(answer_openai)
        assert (await pool.send(embed_request(server))).status == 200


def mutual(server: Certificate, authority: str) -> ssl.SSLContext:
    """The context of a server that accepts only clients whose certificate this authority has signed."""
    context = server.server()
    context.load_verify_locations(cadata=authority)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


async def test_every_endpoint_has_its_own_certificates(tmp_path: Path, files: dict[str, Path]) -> None:
    """Two servers, each of which accepts one client and is signed by one authority."""
    mirrored = {
        "ca_file": write(tmp_path, "ca2.pem", CLIENT.authority),
        "client_cert": write(tmp_path, "both.pem", SERVER.key_and_chain),
    }
    async with (
        FaultServer(tls=mutual(SERVER, CLIENT.authority)) as first,
        FaultServer(tls=mutual(CLIENT, SERVER.authority)) as second,
    ):
        for server in (first, second):
            server.default(answer_openai)
        endpoints = [
            {"base_url": f"{first.base_url}/v1", **{key: str(path) for key, path in files.items()}},
            {"base_url": f"{second.base_url}/v1", **{key: str(path) for key, path in mirrored.items()}},
        ]
        config = {"providers": {"acme": {"plugin": "compatible", "api_key": "k", "endpoints": endpoints}}}
        async with llmopt.AsyncClient(config, cache=False) as client:
            for number in range(8):
                await client.embed("acme/m", [f"text {number}"])
        assert first.requests
        assert second.requests


async def test_a_wrong_file_is_one_error_before_any_connection(tmp_path: Path) -> None:
    """Also for many texts, and without an open circuit."""
    async with FaultServer(tls=SERVER.server()) as server:
        entry = {
            "plugin": "compatible",
            "base_url": server.base_url,
            "api_key": "k",
            "ca_file": str(tmp_path / "none"),
        }
        async with llmopt.AsyncClient({"providers": {"acme": entry}}, cache=False) as client:
            for _ in range(3):
                with pytest.raises(ConfigError, match=r"providers\.acme\.ca_file: the file '.*none' cannot"):
                    await client.embed("acme/m", [str(number) for number in range(100)])
        assert server.connections == 0


@contextmanager
def blocking_server(context: ssl.SSLContext) -> Iterator[str]:
    """A server that sends the alerts of TLS, which asyncio's server does not."""

    def serve(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                accepted, _ = listener.accept()
                accepted.settimeout(5)
                # A second descriptor, because a failed handshake closes the first: closing a socket that has
                # unread data would discard the alert.
                with accepted.dup() as again:
                    with suppress(OSError):
                        context.wrap_socket(accepted, server_side=True).recv(100)
                    with suppress(OSError):
                        again.shutdown(socket.SHUT_WR)
                        while again.recv(4096):
                            pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=[listener])
        thread.start()
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.row("N14")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("shown", ["none", "of another authority"])
async def test_a_server_that_wants_a_client_certificate_is_named(
    version: ssl.TLSVersion, shown: str, tmp_path: Path
) -> None:
    """Whether it says so in the handshake or, as with TLS 1.3, after it."""
    context = mutual(SERVER, SERVER.authority)
    context.maximum_version = version
    files: dict[str, Any] = {"ca_file": write(tmp_path, "ca.pem", SERVER.authority)}
    if shown != "none":
        files["client_cert"] = write(tmp_path, "both.pem", CLIENT.key_and_chain)
    with blocking_server(context) as url:
        async with open_pool(tls=context_of(**files)) as pool:
            error = await expect_error(pool, embed_request_to(url), ConnectFailed)
    assert error.cause == "tls"
    assert "client_cert" in str(error)


@pytest.mark.row("N14")
async def test_a_close_after_the_handshake_may_be_about_a_client_certificate(tmp_path: Path) -> None:
    """A server that closes without an alert says nothing; the message asks."""
    async with (
        FaultServer(tls=mutual(SERVER, SERVER.authority)) as server,
        open_pool(tls=context_of(ca_file=write(tmp_path, "ca.pem", SERVER.authority))) as pool,
    ):
        error = await expect_error(pool, embed_request(server, headers=HEADERS), ConnectionLost)
        assert "client_cert" in str(error)


async def test_a_missing_ssl_cert_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenSSL ignores it, and trusts fewer authorities than the user thinks."""
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere/ca.pem")
    async with FaultServer(tls=SERVER.server()) as server, open_pool() as pool:
        error = await expect_error(pool, embed_request(server), ConnectFailed)
        assert "The file that SSL_CERT_FILE names does not exist." in str(error)
        assert "ca_file" in str(error)


def test_a_context_is_made_once_for_many_connections(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Making one parses all certificates of the system."""
    made: list[object] = []
    create = ssl.create_default_context
    monkeypatch.setattr(
        tls.ssl, "create_default_context", lambda **given: made.append(given) or create(**given)
    )
    for _ in range(20):
        context_of(**files)
    assert len(made) == 1


@pytest.mark.parametrize("framing", [Framing.LENGTH, Framing.CHUNKED])
async def test_responses_of_many_records(framing: Framing) -> None:
    """asyncio hands several records to the protocol at once; none may be lost, whatever they belong to."""
    certificate = good_certificate()
    bodies = [bytes(range(256)) * (size // 256) for size in (256, 16_384, 40_960, 1_048_576)]
    async with FaultServer(tls=certificate.server()) as server, open_pool(tls=certificate.client()) as pool:
        for body in bodies:
            server.play(Answer(200, body, framing=framing, chunk=10_000))
            assert (await pool.send(embed_request(server))).body == body
        assert pool.stats().created == 1
