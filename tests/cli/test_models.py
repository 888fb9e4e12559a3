"""``llmopt models``."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from llmopt import Client
from llmopt.cli.console import format_age, format_bytes, format_price
from llmopt.cli.models import SORT_KEYS, ModelFilter
from llmopt.values.catalog import Model, Prices
from tests.cli.run import LLMOPT, invoke, json_of, llmopt
from tests.cli.server import EmbeddingServer, refused
from tests.cli.test_progress import on_terminal


def test_without_names_all_usable_providers_are_listed(served: EmbeddingServer) -> None:
    """Configured entries, and installed plugins that need no key; on a pipe one line per model."""
    done = llmopt("models")
    assert done.returncode == 0, done.stderr
    rows = [line.split("\t")[:2] for line in done.stdout.decode().splitlines()]
    assert [row for row in rows if row[0] == "near"] == [["near", "small"], ["near", "large"]]
    assert done.stderr == b""


def test_named_providers_and_filters(served: EmbeddingServer) -> None:
    """--text searches ids without regard to case."""
    done = invoke("models", "near", "--text", "SMA")
    assert [line.split("\t")[1] for line in done.stdout.splitlines()] == ["small"]
    assert invoke("models", "near", "--kind", "chat").stdout == ""


def test_json_output_has_models_and_errors_by_provider(served: EmbeddingServer) -> None:
    done = invoke("models", "near", "nobody", "--json")
    table = json_of(done)
    assert [model["id"] for model in table["models"]["near"]] == ["small", "large"]
    assert table["errors"]["nobody"]["type"] == "UnknownProvider"
    assert done.exit_code == 0


def test_the_failure_of_one_provider_does_not_fail_the_command(served: EmbeddingServer) -> None:
    """It is reported on standard error."""
    done = invoke("models", "near", "mistral")
    assert done.exit_code == 0
    assert len(done.stdout.splitlines()) == 2
    assert done.stderr.startswith("llmopt: providers.mistral: there is no key; set the environment variable")


@pytest.mark.parametrize(
    ("names", "code"),
    [(("mistral",), 3), (("mistral", "nobody"), 3), (("near",), 1), (("near", "nobody"), 1)],
)
def test_the_exit_code_when_all_providers_fail(
    served: EmbeddingServer, names: tuple[str, ...], code: int
) -> None:
    """3 if the user's configuration is the reason, else 1."""
    served.models = refused(403, "not for you")
    assert invoke("models", *names).exit_code == code


def test_text_of_a_server_cannot_move_the_cursor(served: EmbeddingServer) -> None:
    """Control characters in names and messages are replaced."""
    served.models = ["\x1b[2Jevil\tname"]
    done = invoke("models", "near")
    assert "\x1b" not in done.stdout
    assert done.stdout.split("\t")[1] == "\ufffd[2Jevil\ufffdname"
    served.models = refused(403, "\x1b[31mred")
    assert "\x1b" not in invoke("models", "near").stderr


def test_entries_that_are_left_out_are_told(served: EmbeddingServer) -> None:
    """On standard error; the models that can be read are listed."""
    served.models = ["a", "", "b"]
    done = invoke("models", "near")
    assert [line.split("\t")[1] for line in done.stdout.splitlines()] == ["a", "b"]
    assert done.stderr == "llmopt: near: 1 of 3 entries cannot be read and are left out.\n"


def test_a_closed_pipe_is_no_error(served: EmbeddingServer) -> None:
    """``llmopt models | head`` closes it early."""
    served.models = [f"model-{number}" for number in range(5_000)]
    process = subprocess.Popen([*LLMOPT, "models", "near"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == (b"", 0)
    process.stderr.close()


def test_without_any_provider_the_error_names_the_doctor(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    """Nothing is installed and nothing configured."""
    monkeypatch.setattr("llmopt.providers.registry.discover_plugins", dict)
    done = invoke("models")
    assert done.exit_code == 3
    assert "llmopt doctor" in done.stderr


# ``llmopt models``: filters, order, ages, the cache; ``llmopt cache``.

MODELS = [
    Model(id="b", kind="chat", context_length=8_000, created=3, prices=Prices(input=2.0, output=8.0)),
    Model(id="A", kind="embedding", dimensions=256, name="Alpha", shutdown="2027-01-01"),
    Model(id="c", kind="chat", context_length=128_000, created=1, aliases=("cee",), prices=Prices(input=0.5)),
]


def ids(**choice: Any) -> str:
    return "".join(model.id for model in ModelFilter(**choice).apply(MODELS))


def test_filters_of_models() -> None:
    """Alone and together."""
    assert ids() == "bAc"
    assert ids(kind="chat") == "bc"
    assert ids(text="ALPHA") == "A"
    assert ids(text="cee") == "c"
    assert ids(min_context=8_000) == "bc"
    assert ids(min_context=8_001, kind="chat") == "c"


def test_sorting_of_models() -> None:
    """Unknown values come last in both directions."""
    assert ids(sort="id") == "Abc"
    assert ids(sort="id", reverse=True) == "cbA"
    assert ids(sort="context") == "bcA"
    assert ids(sort="context", reverse=True) == "cbA"
    assert ids(sort="price") == "cbA"
    assert ids(sort="created") == "cbA"
    assert ids(sort="dimensions") == "Abc"
    assert ids(sort="shutdown") == "Abc"
    assert ids(reverse=True) == "cAb"
    assert all(len(ids(sort=each)) == 3 for each in SORT_KEYS)


def test_formats_of_ages_prices_and_sizes() -> None:
    assert [format_age(each) for each in (0, 59, 60, 3_599, 3_600, 86_400 * 3)] == [
        "now",
        "now",
        "1 min",
        "59 min",
        "1 h",
        "3 d",
    ]
    assert format_age(7_200, stale=True) == "2 h, stale"
    assert [format_price(each, "USD") for each in (None, 0.0, 0.02, 1.5, 15.0)] == [
        "",
        "$0",
        "$0.02",
        "$1.5",
        "$15",
    ]
    assert format_price(1.25, "EUR") == "1.25 EUR"
    assert [format_bytes(each) for each in (0, 1_023, 1_024, 3_500_000, 5 << 30)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "3.3 MiB",
        "5.0 GiB",
    ]


def age_cache(seconds: float) -> None:
    """Make every entry on disk this much older."""
    import struct
    from zlib import crc32

    path = Path(os.environ["XDG_CACHE_HOME"]) / "llmopt" / "cache-1.db"
    connection = sqlite3.connect(path)
    for key, value in connection.execute("SELECT key, value FROM entries").fetchall():
        (created,) = struct.unpack_from("<d", value, 4)
        changed = value[:4] + struct.pack("<d", created - seconds) + value[12:-4]
        checked = changed + struct.pack("<I", crc32(changed, crc32(key)))
        connection.execute("UPDATE entries SET value=? WHERE key=?", (checked, key))
    connection.commit()
    connection.close()


def test_model_lists_are_cached_between_runs(served: EmbeddingServer) -> None:
    """--refresh sends a request, and --offline sends none."""
    assert "small" in invoke("models", "near").stdout
    served.models = ["newer"]
    assert "small" in invoke("models", "near").stdout
    assert "newer" in invoke("models", "near", "--refresh").stdout
    served.models = ["newest"]
    assert "newer" in invoke("models", "near", "--offline").stdout


def test_offline_with_an_empty_cache(served: EmbeddingServer) -> None:
    """The error is one sentence with the name of the option."""
    sentence = "no list of models of 'near' is cached; run the command once without --offline."
    done = invoke("models", "near", "--offline")
    assert done.exit_code == 1
    assert done.stderr == f"llmopt: {sentence}\n"
    done = invoke("models", "near", "--offline", "--json")
    assert json_of(done)["errors"] == {"near": {"type": "NotCached", "message": sentence}}


def test_refresh_and_offline_exclude_each_other(served: EmbeddingServer) -> None:
    """The error comes before any request."""
    done = invoke("models", "near", "--refresh", "--offline")
    assert done.exit_code == 2
    assert "use only one of them" in done.stderr


def test_a_stale_list_is_shown_with_its_age(served: EmbeddingServer) -> None:
    """And with a mark, if the request for a new one failed."""
    invoke("models", "near")
    age_cache(3 * 86_400)
    served.models = refused(503, "down")
    done = invoke("models", "near")
    assert done.exit_code == 0
    assert [line.split("\t")[-1] for line in done.stdout.splitlines()] == ["3 d, stale"] * 2
    table = json_of(invoke("models", "near", "--json"))["catalogues"]["near"]
    assert table["stale"] is True
    assert table["age_s"] == pytest.approx(3 * 86_400, abs=100)
    assert (table["models"], table["dropped"]) == (2, 0)


def test_the_table_on_a_terminal(served: EmbeddingServer) -> None:
    """It has headings, fits the width, and folds a long name."""
    served.models = ["short", "a-model-with-quite-a-long-name-" * 4]
    code, _, shown = on_terminal("models", "near", columns=60, env={"NO_COLOR": "1"})
    assert code == 0
    # What comes after the bar was taken away.
    table = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.rpartition("\x1b[2K")[2])
    lines = [line.rstrip() for line in table.replace("\r", "").splitlines()]
    assert any("provider" in line and "age" in line for line in lines)
    assert max(map(len, lines)) <= 60
    assert "now" in shown


def test_cache_info_and_clear(served: EmbeddingServer) -> None:
    """Entries by kind and provider; without a cache the command creates none."""
    home = Path(os.environ["XDG_CACHE_HOME"]) / "llmopt"
    assert "nothing is cached" in invoke("cache", "info").stdout
    assert not (home / "cache-1.db").exists()
    assert "0 entries removed" in invoke("cache", "clear").stderr
    invoke("models", "near", "local")
    table = json_of(invoke("cache", "info", "--json"))["caches"]
    assert [each["folder"] for each in table] == [str(home)]
    assert {(each["what"], each["provider"], each["entries"]) for each in table[0]["groups"]} == {
        ("catalog", "near", 1),
        ("catalog", "local", 1),
    }
    assert 0 < table[0]["bytes"] < table[0]["max_bytes"]
    shown = invoke("cache", "info").stdout
    assert "list of models\tnear\t1" in shown
    assert "2 entries" in shown
    assert "1 entry removed" in invoke("cache", "clear", "near").stderr
    assert json_of(invoke("cache", "clear", "--json")) == {"removed": 1}
    assert "0 entries" in invoke("cache", "info").stdout


def test_the_cache_shows_and_clears_learned_limits(served: EmbeddingServer) -> None:
    """A process begins with those that another one left on the disk."""
    from tests.support.faults import FaultServer, RateLimited, serving

    with serving(FaultServer()) as limited:
        limited.server.default(RateLimited(rpm=6_000, headers=True))
        with Path("llmopt.toml").open("a") as file:
            file.write(f'[providers.far]\nplugin = "local"\nbase_url = "{limited.server.base_url}"\n')
        with Client() as client:
            client.embed("far/m", ["a"])
        assert "learned limits\tfar\t1" in invoke("cache", "info").stdout
        assert "1 entry removed" in invoke("cache", "clear", "far").stderr
        assert "far" not in invoke("cache", "info").stdout


def test_cache_clear_of_an_unknown_name(served: EmbeddingServer) -> None:
    """It removes nothing, not even entries of a known name in the same command; a known name without entries is no error."""
    invoke("models", "local")
    done = invoke("cache", "clear", "local", "nera")
    assert done.exit_code == 2
    assert done.stderr == (
        "llmopt: unknown provider 'nera'; the names in the cache and the configuration: local, near.\n"
    )
    assert json_of(invoke("cache", "clear", "near", "--json")) == {"removed": 0}
    assert json_of(invoke("cache", "clear", "local", "--json")) == {"removed": 1}


def test_cache_info_of_configured_folders(served: EmbeddingServer, here: Path) -> None:
    """It has each folder that the configuration names."""
    with (here / "llmopt.toml").open("a") as file:
        file.write(f'cache_dir = "{here / "own"}"\n')
    text = (here / "llmopt.toml").read_text()
    (here / "llmopt.toml").write_text(f'cache_dir = "{here / "all"}"\n{text}')
    invoke("models", "near", "local")
    folders = {
        each["folder"]: each["entries"] for each in json_of(invoke("cache", "info", "--json"))["caches"]
    }
    assert folders == {str(here / "all"): 1, str(here / "own"): 1}
    invoke("cache", "clear")
    assert not any(each["entries"] for each in json_of(invoke("cache", "info", "--json"))["caches"])


def test_timeout_bounds_each_provider(served: EmbeddingServer) -> None:
    from tests.support.faults import FaultServer, Script, Stall, serving

    with serving(FaultServer()) as hanging:
        hanging.server.default(Script([Stall()]))
        with Path("llmopt.toml").open("a") as file:
            file.write(f'[providers.far]\nplugin = "local"\nbase_url = "{hanging.server.base_url}"\n')
        started = time.monotonic()
        done = invoke("models", "near", "far", "--timeout", "0.3")
        assert time.monotonic() - started < 60
    assert done.exit_code == 0
    assert "deadline" in done.stderr
