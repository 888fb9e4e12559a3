"""``llmopt models``."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.cli.run import LLMOPT, found, invoke, llmopt
from tests.cli.server import EmbeddingServer, refused


def test_all_that_can_be_asked(served: EmbeddingServer) -> None:
    """Without names: configured entries, and installed plugins that need no key. A line a model on a pipe."""
    done = llmopt("models")
    assert done.returncode == 0, done.stderr
    rows = [line.split("\t")[:2] for line in done.stdout.decode().splitlines()]
    assert [row for row in rows if row[0] == "near"] == [["near", "small"], ["near", "large"]]
    assert done.stderr == b""


def test_one_provider_and_filters(served: EmbeddingServer) -> None:
    """Named providers only; --text looks at ids without regard to case."""
    done = invoke("models", "near", "--text", "SMA")
    assert [line.split("\t")[1] for line in done.stdout.splitlines()] == ["small"]
    assert invoke("models", "near", "--kind", "chat").stdout == ""


def test_json(served: EmbeddingServer) -> None:
    """Models and errors by provider."""
    done = invoke("models", "near", "nobody", "--json")
    table = found(done)
    assert [model["id"] for model in table["models"]["near"]] == ["small", "large"]
    assert table["errors"]["nobody"]["type"] == "UnknownProvider"
    assert done.exit_code == 0


def test_a_failure_is_told_below_the_others(served: EmbeddingServer) -> None:
    """One provider's failure is its own, and no failure of the command."""
    done = invoke("models", "near", "mistral")
    assert done.exit_code == 0
    assert len(done.stdout.splitlines()) == 2
    assert done.stderr.startswith("llmopt: providers.mistral: there is no key; set the environment variable")


@pytest.mark.parametrize(
    ("names", "code"),
    [(("mistral",), 3), (("mistral", "nobody"), 3), (("near",), 1), (("near", "nobody"), 1)],
)
def test_all_failed(served: EmbeddingServer, names: tuple[str, ...], code: int) -> None:
    """Then the exit code tells: 3 for what the user can mend here, else 1."""
    served.models = refused(403, "not for you")
    assert invoke("models", *names).exit_code == code


def test_what_a_server_writes_cannot_move_the_cursor(served: EmbeddingServer) -> None:
    """Control characters in names and messages are made visible."""
    served.models = ["\x1b[2Jevil\tname"]
    done = invoke("models", "near")
    assert "\x1b" not in done.stdout
    assert done.stdout.split("\t")[1] == "\ufffd[2Jevil\ufffdname"
    served.models = refused(403, "\x1b[31mred")
    assert "\x1b" not in invoke("models", "near").stderr


def test_a_closed_pipe_is_no_error(served: EmbeddingServer) -> None:
    """``llmopt models | head`` may stop reading whenever it likes."""
    served.models = [f"model-{number}" for number in range(20_000)]
    process = subprocess.Popen([*LLMOPT, "models", "near"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == (b"", 0)
    process.stderr.close()


def test_nobody_to_ask(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    """Nothing installed and nothing configured: told what to look at."""
    monkeypatch.setattr("llmopt.providers.registry.discover_plugins", dict)
    done = invoke("models")
    assert done.exit_code == 3
    assert "llmopt doctor" in done.stderr
