"""Certificates for a server on loopback: a valid one, and each kind that a client must refuse.

Made by trustme where it is installed, else by the `openssl` command; `can_make_certificates` says whether either is there.
"""

from __future__ import annotations

import datetime as dt
import importlib
import importlib.util
import shutil
import ssl
import subprocess
import tempfile
from pathlib import Path

from attrs import frozen

from tests.support.faults.ports import HOST

ELSEWHERE = "elsewhere.example"
LONG_AGO = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
NOT_SO_LONG_AGO = dt.datetime(2021, 1, 1, tzinfo=dt.UTC)
FAR_AHEAD = dt.datetime(2049, 1, 1, tzinfo=dt.UTC)
OPENSSL_CONFIG = """\
[ca]
default_ca = own
[own]
database = index.txt
new_certs_dir = .
default_md = sha256
policy = any
rand_serial = yes
x509_extensions = leaf
[any]
commonName = supplied
[leaf]
subjectAltName = {kind}:{name}
basicConstraints = critical, CA:false
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid:always
"""


@frozen
class Certificate:
    """A server's key and chain in PEM, and the PEM of the authority that a client must trust to accept it."""

    key_and_chain: str
    authority: str

    def server(self) -> ssl.SSLContext:
        """Return the context of a server with this certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "server.pem")
            file.write_text(self.key_and_chain)
            context.load_cert_chain(file)
        return context

    def client(self) -> ssl.SSLContext:
        """Return the context of a client that trusts only this authority."""
        return ssl.create_default_context(cadata=self.authority)


def can_make_certificates() -> bool:
    """Return whether trustme or openssl is installed."""
    return _has_trustme() or shutil.which("openssl") is not None


def good_certificate() -> Certificate:
    """Make a certificate for loopback, valid now."""
    return make_certificate(HOST)


def expired_certificate() -> Certificate:
    """Make a certificate for loopback whose time ended years ago."""
    return make_certificate(HOST, end=NOT_SO_LONG_AGO)


def wrong_host_certificate() -> Certificate:
    """Make a valid certificate for another host name."""
    return make_certificate(ELSEWHERE)


def self_signed_certificate() -> Certificate:
    """Make a self-signed certificate, with an authority that did not sign it."""
    selfish, stranger = make_certificate(HOST, self_signed=True), make_certificate(ELSEWHERE)
    return Certificate(selfish.key_and_chain, stranger.authority)


def make_certificate(name: str, *, end: dt.datetime = FAR_AHEAD, self_signed: bool = False) -> Certificate:
    """Make a certificate that is valid from 2020 until `end`; whatever openssl makes is self-signed."""
    return _with_trustme(name, end, self_signed) if _has_trustme() else _with_openssl(name, end)


def _has_trustme() -> bool:
    return importlib.util.find_spec("trustme") is not None


def _with_trustme(name: str, end: dt.datetime, self_signed: bool) -> Certificate:
    trustme = importlib.import_module("trustme")
    authority = trustme.CA()
    trusted = authority.cert_pem.bytes().decode()
    if self_signed:
        return Certificate(authority.private_key_pem.bytes().decode() + trusted, trusted)
    leaf = authority.issue_cert(name, not_before=LONG_AGO, not_after=end)
    return Certificate(leaf.private_key_and_cert_chain_pem.bytes().decode(), trusted)


def _with_openssl(name: str, end: dt.datetime) -> Certificate:
    kind = "IP" if name == HOST else "DNS"
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "ca.cnf").write_text(OPENSSL_CONFIG.format(kind=kind, name=name))
        Path(folder, "index.txt").touch()
        ask = "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key.pem -out ask.pem"
        _openssl(folder, *ask.split(), "-subj", f"/CN={name}")
        sign = "ca -batch -config ca.cnf -selfsign -notext -keyfile key.pem -in ask.pem -out cert.pem"
        dates = "-startdate", f"{LONG_AGO:%Y%m%d%H%M%SZ}", "-enddate", f"{end:%Y%m%d%H%M%SZ}"
        _openssl(folder, *sign.split(), *dates)
        certificate = Path(folder, "cert.pem").read_text()
        return Certificate(Path(folder, "key.pem").read_text() + certificate, certificate)


def _openssl(folder: str, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)
