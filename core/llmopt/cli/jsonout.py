"""JSON objects on standard output."""

from __future__ import annotations

from typing import Any

import click
import msgspec


def print_json(value: Any) -> None:
    """Print a value, indented; what others wrote in it is escaped by JSON's own rules."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def print_line(value: Any) -> None:
    """Print a value on a line of its own."""
    click.echo(msgspec.json.encode(value).decode())
