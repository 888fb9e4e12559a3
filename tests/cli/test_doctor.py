"""``llmopt doctor``: configuration, checks of providers, and advice."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import pytest

import llmopt as library
from tests.cli.installed import install, path_with
from tests.cli.run import invoke, json_of, llmopt
from tests.cli.server import EmbeddingServer, refused


def checks(*arguments: str) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in json_of(invoke("doctor", "--json", *arguments))["providers"]}


def configure(**entries: str) -> None:
    Path("llmopt.toml").write_text("".join(f"[providers.{name}]\n{text}\n" for name, text in entries.items()))


def test_versions_and_configuration(served: EmbeddingServer) -> None:
    """Versions, the file in use and the plugins, as text and as JSON."""
    done = llmopt("doctor")
    assert done.returncode == 0, done.stderr
    head = done.stdout.decode().splitlines()[:2]
    assert head[0].startswith(f"llmopt {library.__version__}, Python {platform.python_version()}, ")
    assert head[1] == "configuration: llmopt.toml"
    table = json_of(invoke("doctor", "--json"))
    assert (table["llmopt"], table["python"]) == (library.__version__, platform.python_version())
    assert table["configuration"] == {"file": "llmopt.toml", "error": None}
    assert {"local", "mistral"} <= {each["name"] for each in table["plugins"]}


def test_a_working_provider(served: EmbeddingServer) -> None:
    """Models, latency and base URL of a server; the in-process engine has no base URL."""
    near = checks()["near"]
    assert near.pop("latency_ms") > 0
    assert near == {
        "name": "near",
        "plugin": "local",
        "endpoint": 0,
        "base_url": served.url,
        "key": "not needed",
        "key_source": "",
        "state": "ok",
        "models": 2,
        "error": "",
        "advice": "",
        "chosen": True,
        "rated": [],
        "unlisted": [],
        "operations": None,
    }
    assert "in this process" in invoke("doctor", "local").stdout


def test_a_provider_without_a_key_is_no_failure() -> None:
    """The doctor says how to set it up, exit code 0; if it is named on the command line it is a failure."""
    done = invoke("doctor")
    assert done.exit_code == 0, done.stderr
    assert (
        "not set up: providers.mistral: there is no key; set the environment variable MISTRAL_API_KEY"
        in done.stderr
    )
    done = invoke("doctor", "mistral")
    assert done.exit_code == 3
    assert done.stderr.startswith("llmopt: providers.mistral: there is no key")


@pytest.mark.parametrize("offline", [(), ("--offline",)])
def test_a_wrong_file_of_certificates_is_found_without_a_request(
    served: EmbeddingServer, offline: tuple[str, ...]
) -> None:
    """The exit code is that of a wrong configuration."""
    configure(near=f'plugin = "local"\nbase_url = "{served.url}"\nca_file = "none.pem"')
    assert checks(*offline)["near"]["state"] == "cannot be used"
    done = invoke("doctor", "near", *offline)
    assert done.exit_code == 3
    assert (
        "providers.near.ca_file: the file 'none.pem' cannot be read: no such file or directory."
        in done.stderr
    )
    assert served.requests == 0


@pytest.mark.parametrize("offline", [(), ("--offline",)])
def test_the_key_is_never_shown(
    served: EmbeddingServer, monkeypatch: pytest.MonkeyPatch, offline: tuple[str, ...]
) -> None:
    """Only whether there is one and where it comes from, in every form of output."""
    configure(
        a=f'plugin = "local"\nbase_url = "{served.url}"\napi_key = "sk-in-the-file"',
        b=f'plugin = "local"\nbase_url = "{served.url}"\napi_key_env = "MY_KEY"',
        c=f'plugin = "local"\nbase_url = "{served.url}"\napi_key_env = "NOT_THERE"',
        d=f'plugin = "local"\nbase_url = "{served.url}"\napi_key_env = "BAD_KEY"',
    )
    monkeypatch.setenv("MY_KEY", "sk-in-the-environment")
    monkeypatch.setenv("BAD_KEY", "sk with spaces")
    shown = checks(*offline)
    assert (shown["a"]["key"], shown["a"]["key_source"]) == ("present", "configuration")
    assert (shown["b"]["key"], shown["b"]["key_source"]) == ("present", "environment variable MY_KEY")
    assert shown["c"]["key"] == "missing"
    assert "NOT_THERE" in shown["c"]["error"]
    assert shown["d"]["key"] == "unusable"
    done = invoke("doctor", *offline)
    for text in (done.stdout, done.stderr, str(shown)):
        assert "sk-" not in text
        assert "spaces" not in text.replace("a space", "")


def test_offline_sends_no_request(served: EmbeddingServer) -> None:
    served.models = refused(500, "no request should see this")
    done = invoke("doctor", "near", "--offline", "--json")
    assert (done.exit_code, json_of(done)["providers"][0]["state"]) == (0, "not asked")


ANSWERS = [
    (401, "set a key: this server requires one"),
    (403, "the key is valid but may not list models; other calls may work"),
    (404, "check the path of base_url; a server without a list of models may work for other calls"),
    (418, ""),
]


@pytest.mark.parametrize(("status", "advice"), ANSWERS)
def test_advice_for_a_server_that_refuses(served: EmbeddingServer, status: int, advice: str) -> None:
    """By status; exit code 1."""
    served.models = refused(status, "this is what the server said")
    done = invoke("doctor", "near", "--json")
    near = json_of(done)["providers"][0]
    assert (done.exit_code, near["state"], near["models"]) == (1, "failed", None)
    assert "this is what the server said" in near["error"]
    if advice:
        assert near["advice"] == advice


def test_advice_for_a_server_that_does_not_run() -> None:
    configure(gone='plugin = "local"\nbase_url = "http://127.0.0.1:1/v1"')
    done = invoke("doctor", "gone")
    assert done.exit_code == 1
    assert "To do: start the server, or correct the port in base_url." in done.stderr


def test_advice_for_a_server_that_is_not_the_provider(served: EmbeddingServer) -> None:
    """It answers with another JSON object than a list of models."""
    served.models = (200, {"hello": "world"})
    assert checks("near")["near"]["advice"] == "check base_url: the server there is not the provider"


def test_an_invalid_configuration_is_reported(here: Path) -> None:
    """Plugins and versions are shown all the same."""
    (here / "other.toml").write_text("[providers.near]\nmax_retries = 'many'\n")
    done = invoke("doctor", "--config", "other.toml", "--json")
    table = json_of(done)
    assert done.exit_code == 3
    assert table["configuration"]["file"] == "other.toml"
    assert "providers.near.max_retries" in table["configuration"]["error"]
    assert table["plugins"]
    assert "providers.near.max_retries" in invoke("doctor", "--config", "other.toml").stderr


def test_a_broken_plugin_is_reported(tmp_path: Path) -> None:
    """The other providers are checked all the same."""
    folder = tmp_path / "packages"
    source = (
        "from llmopt import Profile, hookimpl\n"
        "@hookimpl\n"
        "def provider_profile(entry):\n"
        "    return Profile(base_url='http://127.0.0.1:1', key_required=False)\n"
        "@hookimpl\n"
        "def open_transport(settings):\n"
        "    return 7\n"
    )
    install(folder, "faulty-1.0", {"faulty": "faulty_plugin"}, {"faulty_plugin": source})
    done = llmopt("doctor", "faulty", "local", "--json", env=path_with(folder))
    reports = {each["name"]: each for each in json_of(done)["providers"]}
    assert reports["faulty"]["state"] == "failed"
    assert "open_transport returned int" in reports["faulty"]["error"]
    assert reports["local"]["state"] == "ok"
    assert done.returncode == 1


def test_a_rate_for_an_unlisted_model_is_reported(served: EmbeddingServer) -> None:
    """Its name may be misspelt."""
    listed = json_of(invoke("models", "near", "--json"))["models"]["near"][0]["id"]
    configure(
        near=(
            f'plugin = "local"\nbase_url = "{served.url}"\n'
            f'rpm = {{ default = 60, "{listed}" = 30, mispelt = 10 }}\ntpm = {{ mispelt = 1000 }}'
        )
    )
    done = invoke("doctor", "near", "--json")
    near = json_of(done)["providers"][0]
    assert (done.exit_code, near["state"]) == (0, "ok")
    assert (near["rated"], near["unlisted"]) == ([listed, "mispelt"], ["mispelt"])
    assert (
        "near: rpm or tpm is set for mispelt, which its list of models does not contain"
        in invoke("doctor", "near").stderr
    )
    offline = json_of(invoke("doctor", "near", "--offline", "--json"))["providers"][0]
    assert (offline["rated"], offline["unlisted"]) == ([listed, "mispelt"], [])


def test_every_endpoint_of_an_entry_is_checked(served: EmbeddingServer) -> None:
    configure(
        both=(
            'plugin = "local"\n'
            f'endpoints = [{{ base_url = "{served.url}" }}, {{ base_url = "http://127.0.0.1:1/v1" }}]'
        )
    )
    done = invoke("doctor", "both", "--json")
    assert [each["state"] for each in json_of(done)["providers"]] == ["ok", "failed"]


def test_an_entry_with_an_unknown_key_is_reported(served: EmbeddingServer) -> None:
    """The other entries are checked all the same."""
    configure(near=f'plugin = "local"\nbase_url = "{served.url}"', bad='plugin = "local"\nurl = "x"')
    done = invoke("doctor", "--json")
    states = {each["name"]: each for each in json_of(done)["providers"]}
    assert (states["near"]["state"], states["bad"]["state"]) == ("ok", "cannot be used")
    assert "providers.bad.url" in states["bad"]["error"]
    assert done.exit_code == 3
