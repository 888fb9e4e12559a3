"""A package index on loopback, with the pages of PEP 503 and the metadata files of PEP 658 and 714.

It is what pip and uv meet on the network: they normalise names, read pages, compare hashes and choose versions, which
``--find-links`` leaves out. A thread serves one folder until the context ends.
"""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Final
from urllib.parse import quote, unquote
from zipfile import ZipFile

from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    canonicalize_name,
    parse_sdist_filename,
    parse_wheel_filename,
)

_REQUIRES_PYTHON: Final = re.compile(rb"^Requires-Python: *(.+?)\r?$", re.MULTILINE)


def project_of(filename: str) -> str | None:
    """The normalised name of the project that a file belongs to; None for what is no distribution."""
    try:
        parse = parse_wheel_filename if filename.endswith(".whl") else parse_sdist_filename
        return parse(filename)[0]
    except (InvalidWheelFilename, InvalidSdistFilename):
        return None


class Index:
    """The files of one folder as an index has them.

    Args:
        folder: wheels and source distributions.
    """

    def __init__(self, folder: Path) -> None:
        self._files: Final = {path.name: path for path in sorted(folder.iterdir()) if project_of(path.name)}

    def answer(self, path: str) -> bytes | None:
        """The body for a path, or None where nothing is."""
        parts = unquote(path).strip("/").split("/")
        match parts:
            case ["simple"]:
                projects = sorted({project_of(name) or "" for name in self._files})
                return _page("Simple index", [f'<a href="/simple/{name}/">{name}</a>' for name in projects])
            case ["simple", name] if links := self._links(name):
                return _page(f"Links for {name}", links)
            case ["files", name] if name in self._files:
                return self._files[name].read_bytes()
            case ["files", name] if name.removesuffix(".metadata") in self._files:
                return metadata_of(self._files[name.removesuffix(".metadata")])
        return None

    def _links(self, project: str) -> list[str]:
        return [
            _link(path)
            for name, path in self._files.items()
            if project_of(name) == canonicalize_name(project)
        ]


def _page(title: str, lines: list[str]) -> bytes:
    body = "".join(f"    {line}<br/>\n" for line in lines)
    head = (
        f'<head><meta name="pypi:repository-version" content="1.0"><title>{html.escape(title)}</title></head>'
    )
    return f"<!DOCTYPE html>\n<html>\n  {head}\n  <body>\n{body}  </body>\n</html>\n".encode()


def _link(path: Path) -> str:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    attributes = ""
    if metadata := metadata_of(path):
        core = f"sha256={hashlib.sha256(metadata).hexdigest()}"
        # PEP 714: the second name is what installers from before 2023 look for.
        attributes = f' data-core-metadata="{core}" data-dist-info-metadata="{core}"'
        if requires := _REQUIRES_PYTHON.search(metadata):
            attributes += f' data-requires-python="{html.escape(requires[1].decode())}"'
    return f'<a href="/files/{quote(path.name)}#sha256={digest}"{attributes}>{html.escape(path.name)}</a>'


def metadata_of(path: Path) -> bytes | None:
    """The metadata inside a wheel; None for a source distribution, whose metadata may change when it is built."""
    if path.suffix != ".whl":
        return None
    with ZipFile(path) as archive:
        (name,) = [each for each in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", each)]
        return archive.read(name)


class _Handler(BaseHTTPRequestHandler):
    """Answers GET from an index."""

    protocol_version = "HTTP/1.1"

    def __init__(self, index: Index, *args: object) -> None:
        self._index = index
        super().__init__(*args)  # type: ignore[arg-type] # what socketserver passes on

    def do_GET(self) -> None:
        """One page or file."""
        path = self.path.partition("?")[0]
        body = self._index.answer(path)
        self.send_response(HTTPStatus.NOT_FOUND if body is None else HTTPStatus.OK)
        self.send_header(
            "Content-Type", "text/html" if path.startswith("/simple") else "application/octet-stream"
        )
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *_: object) -> None:
        """The transcript of an installation is about the installer."""


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve a folder of distributions; gives the URL of the index."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, Index(folder)))
    thread = Thread(target=server.serve_forever, name="package index", daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/simple/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
