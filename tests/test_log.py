"""Lines in the log: what is written at which level, in programs with logging, with structlog, and with neither.

Each program runs in a process of its own, because loggers, handlers and structlog's configuration belong to the process.
"""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import textwrap
from typing import get_args

import pytest

import llmopt
from llmopt import log
from llmopt.testing.clock import SimulatedClock, run_simulated
from llmopt.values import events
from tests.engine.test_call_events import DOWN, MODEL, config
from tests.support.faults import FaultServer, answer_openai
from tests.test_size import REPOSITORY

KEY = "sk-canary-0a1b2c3d4e5f"
TEXT = "canary-text-9f8e7d"

PROGRAM = f"""
import asyncio, logging, sys
import llmopt
from tests.support.configuration import provider_config
from tests.support.faults import Answer, FaultServer, answer_openai

HEADERS = [("content-type", "application/json")]
REFUSED = Answer(401, b'{{"error": {{"message": "who?"}}}}', HEADERS)

async def main():
    async with FaultServer() as server:
        server.default(answer_openai)
        server.play(Answer(500, b'{{"error": {{"message": "down"}}}}', HEADERS))
        entry = provider_config(server, api_key={KEY!r}, max_retries=2, retry_delay=0.001)
        async with llmopt.AsyncClient(entry) as client:
            await client.embed("server/m", [{TEXT!r}, "b"])
            await client.list_models("server")
            server.default(REFUSED)
            try:
                await client.embed("server/m", ["c"])
            except llmopt.AuthError:
                pass

SETUP
asyncio.run(main())
"""


def run(setup: str = "") -> subprocess.CompletedProcess[str]:
    """A program that has one retry, one list of models and one refused key."""
    code = PROGRAM.replace("SETUP", textwrap.dedent(setup))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True, cwd=REPOSITORY
    )
    assert KEY not in done.stderr
    assert TEXT not in done.stderr
    return done


@pytest.fixture(scope="module")
def story() -> list[str]:
    """The lines of a program with logging at DEBUG."""
    done = run("""
        logging.basicConfig(format="%(levelname)s %(name)s %(message)s")
        logging.getLogger("llmopt").setLevel(logging.DEBUG)
    """)
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_without_any_logging_a_program_sees_warnings_on_standard_error() -> None:
    """The refused key, and nothing else: no retry, no request, nothing on standard output."""
    done = run()
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "the key of server/m at http://127.0.0.1" in line
    assert "was refused" in line
    assert "who?" in line


def test_debug_tells_one_call_from_its_start_to_its_end(story: list[str]) -> None:
    """In order, and each line with the id of its call."""
    first = story[0].split("[")[1][:8]
    lines = [line for line in story if f"[{first}" in line]
    begins = [line.partition("] ")[2].split(" ")[0] for line in lines]
    assert begins == ["call", "request", "attempt", "retry", "attempt", "request", "call"]
    assert [line.split(" ")[1] for line in lines].count("llmopt.retry") == 1
    assert "texts: 2, tokens: about" in lines[1]
    assert "ServerError, HTTP 500 after" in lines[2]
    assert "over a new connection" in lines[2]
    assert "retry 1 of server/m" in lines[3]
    assert "over an open connection" in lines[4]
    assert "requests: 2, results: 2, failed: 0, tokens: " in lines[-1]


def test_a_list_of_models_is_told_in_words(story: list[str]) -> None:
    """Without the number of tokens, as it has none."""
    told = [line.partition("] ")[2] for line in story]
    assert told[told.index("call for the models of server") :][:3] == [
        "call for the models of server",
        "catalog of server not in the cache: 1",
        "request to server",
    ]


def test_info_has_no_line_for_every_request(story: list[str]) -> None:
    """The retry alone, of three calls."""
    assert [line.split(" ")[1] for line in story if line.startswith("INFO")] == ["llmopt.retry"]
    assert [line.split(" ")[1] for line in story if line.startswith("WARNING")] == ["llmopt.request"]


def test_a_json_formatter_gets_the_values_of_each_record() -> None:
    """As ``extra``, each with its prefix; the message stays readable."""
    done = run("""
        import json
        class Formatter(logging.Formatter):
            def format(self, record):
                return json.dumps({"message": record.getMessage(), **vars(record)}, default=str)
        handler = logging.StreamHandler()
        handler.setFormatter(Formatter())
        logging.getLogger("llmopt").addHandler(handler)
        logging.getLogger("llmopt").setLevel(logging.INFO)
    """)
    assert done.stdout == ""
    retry, refused = (json.loads(line) for line in done.stderr.splitlines())
    assert (retry["llmopt_event"], retry["llmopt_cause"]) == ("request.retry", "ServerError")
    assert (retry["llmopt_provider"], retry["llmopt_model"]) == ("server", "m")
    assert retry["llmopt_endpoint"].startswith("http://127.0.0.1:")
    assert retry["llmopt_request_key"] == f"{retry['llmopt_call_id']}-1"
    assert retry["message"].startswith(f"[{retry['llmopt_call_id'][:8]}-1] retry 1 of server/m")
    assert refused["llmopt_event"] == "credential.refused"
    assert refused["llmopt_call_id"] != retry["llmopt_call_id"]


def test_a_program_with_structlog_gets_its_events() -> None:
    """Through its own processors and factory, with the same values; from logging nothing is heard then."""
    done = run("""
        import structlog
        structlog.configure(
            processors=[structlog.processors.add_log_level, structlog.processors.JSONRenderer()],
            logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        )
        logging.basicConfig(format="LOGGING %(message)s")
    """)
    assert done.stdout == ""
    found = [json.loads(line) for line in done.stderr.splitlines() if not line.startswith("LOGGING")]
    assert len(found) == len(done.stderr.splitlines())
    first = [each for each in found if each.get("call_id") == found[0]["call_id"]]
    assert [each["event"] for each in first] == [
        "call.start",
        "request.start",
        "request.attempt",
        "request.retry",
        "request.attempt",
        "request.end",
        "call.end",
    ]
    assert [each["event"] for each in found if each["level"] == "info"] == ["request.retry"]
    assert [each["event"] for each in found if each["level"] == "warning"] == ["credential.refused"]


FILTERED = "{}, wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))"
LEVELLED = "{})\nlogging.getLogger('llmopt').setLevel(logging.WARNING)"


@pytest.mark.parametrize("ending", [FILTERED, LEVELLED], ids=["structlog's filter", "level of our logger"])
def test_levels_hold_in_structlog_too(ending: str) -> None:
    """A filter of structlog, and a level that is set for one of llmopt's loggers."""
    configure = "structlog.configure(processors=[structlog.processors.JSONRenderer()], logger_factory=factory"
    setup = "import structlog\nfactory = structlog.PrintLoggerFactory(sys.stderr)\n"
    done = run(setup + ending.format(configure))
    assert [json.loads(line)["event"] for line in done.stderr.splitlines()] == ["credential.refused"]


def test_staminas_own_hook_and_an_unconfigured_structlog_print_nothing() -> None:
    """Its default logger would print each retry on standard output."""
    done = run("import structlog, stamina\nlogging.getLogger('llmopt').setLevel(logging.ERROR)")
    assert (done.stdout, done.stderr) == ("", "")


def test_structlog_is_imported_for_the_first_record_alone() -> None:
    """And not on the event loop's thread."""
    code = """
import sys, threading
from llmopt import log
assert "structlog" not in sys.modules
log.CACHE.write(log.DEBUG, "off", "no line")
assert not [each for each in threading.enumerate() if each.name == "llmopt-log"]
log.CACHE.write(log.WARNING, "on", "the first line", {"number": 1})
log._structlog.finish_import()
assert "structlog" in sys.modules and not sys.modules["structlog"].is_configured()
log.CACHE.write(log.WARNING, "on", "the second line")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert (done.stdout, done.stderr) == ("", "the first line\nthe second line\n")


def test_records_are_the_same_before_and_after_the_import(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever reads them cannot tell which way they came."""
    caplog.set_level(logging.INFO, "llmopt")
    loaded = log._Structlog.loaded
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log._Structlog, "loaded", lambda _: None)
        log.LIMITS.write(log.INFO, "limit.learned", "100% of it", {"value": 1, "limit": "rpm"})
    log._structlog.finish_import()
    assert loaded(log._structlog) is not None
    log.LIMITS.write(log.INFO, "limit.learned", "100% of it", {"value": 1, "limit": "rpm"})
    first, second = caplog.records
    own = {"llmopt_event": "limit.learned", "llmopt_value": 1, "llmopt_limit": "rpm"}
    for record in (first, second):
        assert (record.name, record.levelname, record.getMessage()) == ("llmopt.limits", "INFO", "100% of it")
        assert {name: each for name, each in vars(record).items() if name.startswith("llmopt_")} == own


def test_a_long_wait_is_told_at_info_with_the_limits_in_force(caplog: pytest.LogCaptureFixture) -> None:
    """A short one at DEBUG only."""

    async def main(clock: SimulatedClock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(config(server, rpm=6), clock=clock) as client,
        ):
            server.default(answer_openai)
            for number in range(3):
                await client.embed(MODEL, [f"text {number}"])

    caplog.set_level(logging.INFO, "llmopt")
    run_simulated(main)
    waits = [each for each in caplog.messages if "waited" in each]
    assert waits
    assert all("s for the rate limiter of server/m" in each and "rpm" in each for each in waits)
    assert all(record.name == "llmopt.limits" for record in caplog.records)


def test_an_opened_circuit_is_a_warning_and_a_closed_one_is_not(caplog: pytest.LogCaptureFixture) -> None:
    """With the words of the failure, and the id of the call that opened it."""

    async def main(clock: SimulatedClock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(config(server, max_retries=0), clock=clock) as client,
        ):
            server.default(DOWN)
            for number in range(40):
                try:
                    await client.embed(MODEL, [f"text {number}"])
                except llmopt.CircuitOpen:
                    break
                except llmopt.ServerError:
                    continue
            server.default(answer_openai)
            for number in range(5):
                await client.embed(MODEL, [f"after {number}"], when_open="wait")

    caplog.set_level(logging.INFO, "llmopt.circuit")
    run_simulated(main)
    changes = [
        (each.levelname, vars(each)["llmopt_new"]) for each in caplog.records if each.name == "llmopt.circuit"
    ]
    assert changes == [("WARNING", "open"), ("INFO", "half_open"), ("INFO", "closed")]
    assert "after ServerError: down" in caplog.records[0].getMessage()
    assert len(vars(caplog.records[0])["llmopt_call_id"]) == 16


def test_the_page_names_the_lines_that_are_made_of_no_event() -> None:
    """Each name that is written in the code, and no other."""
    code = "\n".join(path.read_text() for path in (REPOSITORY / "core" / "llmopt").rglob("*.py"))
    # The last part of one name is a word for the problem.
    written = set(re.findall(r'\.write\(\s*[\w.]+, f?"([\w.{}]+)"', code)) - {"cache.{problem}"}
    written |= {f"cache.{problem}" for problem in ("unusable", "unwritable")}
    page = (REPOSITORY / "docs" / "logging.md").read_text()
    table = page.split("| name | when | log line |")[1].split("\n\n")[0]
    named = {
        name for line in table.splitlines()[2:] for name in re.findall(r"`([\w.]+)`", line.split(" | ")[0])
    }
    assert named == written - {kind.name for kind in get_args(events.Event)}
