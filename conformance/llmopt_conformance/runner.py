"""Find a plugin and run the checks on it."""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, ClassVar, Final

from llmopt.errors import LLMOptError, UnknownProvider
from llmopt.testing.corpus import FILE, CorpusError, KnownError, corpus_of
from llmopt.testing.dialect import Samples
from llmopt.testing.harness import InstalledPlugin, discover_plugins
from llmopt_conformance.checks_answers import (
    catalog_checks,
    embeddings_checks,
    limits_checks,
    refusals_checks,
)
from llmopt_conformance.checks_chat import chat_checks, chat_client_checks, stream_checks
from llmopt_conformance.checks_client import client_checks
from llmopt_conformance.checks_errors import errors_checks, robust_checks
from llmopt_conformance.checks_package import (
    discovery_checks,
    imports_checks,
    package_checks,
    profile_checks,
    purity_checks,
)
from llmopt_conformance.checks_requests import (
    options_checks,
    request_checks,
    secrets_checks,
    transport_checks,
)
from llmopt_conformance.subject import Check, CheckFailed, NotApplicable, Subject, expect

CHECKS: Final[tuple[Check, ...]] = (
    *discovery_checks.checks,
    *imports_checks.checks,
    *package_checks.checks,
    *profile_checks.checks,
    *purity_checks.checks,
    *limits_checks.checks,
    *request_checks.checks,
    *options_checks.checks,
    *secrets_checks.checks,
    *embeddings_checks.checks,
    *refusals_checks.checks,
    *catalog_checks.checks,
    *chat_checks.checks,
    *stream_checks.checks,
    *errors_checks.checks,
    *robust_checks.checks,
    *transport_checks.checks,
    *client_checks.checks,
    *chat_client_checks.checks,
)
"""The checks that every plugin gets, in the order in which an author mends things."""


def checks_for(subject: Subject) -> tuple[Check, ...]:
    """The checks that one plugin gets: those of all, and one for each error of its own corpus."""
    return (*CHECKS, *own_checks(subject))


def subject_named(name: str, samples: str = "") -> Subject:
    """The plugin to hold against the kit.

    Args:
        name: an installed provider's name, or a module's.
        samples: "module:name" of the `Samples` for it, "" for none.

    Raises:
        PluginError: it is installed and does not load.
        UnknownProvider: there is neither.
    """
    found = discover_plugins()
    if name in found:
        return Subject(found[name].load(), name=name, samples=_samples(samples))
    if not name.isidentifier() and not all(part.isidentifier() for part in name.split(".")):
        raise _unknown(name, found)
    if find_spec(name.partition(".")[0]) is None:
        raise _unknown(name, found)
    return Subject(import_module(name), samples=_samples(samples))


def _samples(place: str) -> Samples | None:
    if not place:
        return None
    module, _, name = place.partition(":")
    found = getattr(import_module(module), name or "SAMPLES")
    if not isinstance(found, Samples):
        raise TypeError(f"{place} is a {type(found).__name__}, not a llmopt_conformance.Samples")
    return found


def _unknown(name: str, installed: Mapping[str, InstalledPlugin]) -> UnknownProvider:
    # A general plugin's many names are counted.
    have = [each.name for each in installed.values() if not each.fallback]
    more = len(installed) - len(have)
    listed = ", ".join([*have, *([f"{more} more, which llmopt plugins lists"] if more else [])])
    return UnknownProvider(
        f"no provider {name!r} is installed (there are {listed or 'none'}), and no module is called that."
    )


# One check for each error in the plugin's own corpus.

_SENTENCE: Final = f"The verdict is the one that the plugin's {FILE} states."


def own_checks(subject: Subject) -> tuple[Check, ...]:
    """A check for each error of the plugin's corpus; none when it has no corpus."""
    folder = subject.sources.folder
    if folder is None:
        return ()
    try:
        known = corpus_of(folder)
    except CorpusError as fault:
        return (_unreadable(str(fault)),)
    return tuple(_check(error) for error in known)


def _check(error: KnownError) -> Check:
    def ask(subject: Subject) -> None:
        faults = error.faults(subject.hooks.classify_error(error.failure, subject.settings()))
        expect(not faults, "\n".join(faults))

    return Check(id=f"own-errors.{_slug(error.name)}", expects=_SENTENCE, ask=ask)


def _unreadable(fault: str) -> Check:
    def ask(_: Subject) -> None:
        raise CheckFailed(f"{FILE}: {fault}")

    return Check(
        id="own-errors.readable", expects=f"{FILE} has the form of docs/development/error-corpus.md.", ask=ask
    )


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def conformance(plugin: object, *, name: str = "", samples: Samples | None = None) -> Callable[..., None]:
    """A test that pytest runs once for each check of the kit.

    Args:
        plugin: the plugin's module, its name, or any object with its hooks.
        name: the provider's name; by default the key of the entry point, else what follows
            ``llmopt_plugin_`` in the module's name.
        samples: how to ask and answer it, where its provider differs from the common dialect.
    """
    import pytest

    found = import_module(plugin) if isinstance(plugin, str) else plugin
    subject = Subject(found, name=name, samples=samples)
    checks = checks_for(subject)

    @pytest.mark.parametrize("check", checks, ids=[check.id for check in checks])
    def test_conformance(check: Check) -> None:
        """The plugin conforms."""
        run(check, subject)

    return test_conformance


class Conformance:
    """The same as a class.

    ::

        class TestAcme(Conformance):
            plugin = llmopt_plugin_acme
    """

    plugin: ClassVar[object]
    provider: ClassVar[str] = ""
    samples: ClassVar[Samples] = Samples()

    def __init_subclass__(cls, **values: Any) -> None:
        super().__init_subclass__(**values)
        if "plugin" in vars(cls):
            test = conformance(cls.plugin, name=cls.provider, samples=cls.samples)
            cls.test_conformance = staticmethod(test)  # type: ignore[attr-defined] # made for each subclass


def run(check: Check, subject: Subject) -> None:
    """Run one check as a test: a failure shows the check's own words and no traceback."""
    import pytest

    __tracebackhide__ = True
    try:
        check.run(subject)
    except CheckFailed as error:
        failed = str(error)
    except NotApplicable as reason:
        pytest.skip(str(reason))
    else:
        return
    pytest.fail(failed, pytrace=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Hold a plugin against every check; 0 when it conforms, 1 when it does not, 2 when there is none."""
    parser = argparse.ArgumentParser(
        prog="python -m llmopt_conformance", description="Check a provider plugin offline, without a key."
    )
    parser.add_argument("plugin", help="an installed provider's name, or a module's")
    parser.add_argument(
        "--samples", default="", metavar="MODULE:NAME", help="the llmopt_conformance.Samples for it"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="list the checks that it passes, too")
    given = parser.parse_args(arguments)
    try:
        subject = subject_named(given.plugin, given.samples)
    except LLMOptError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    results = Counter(_print_outcome(check, subject, verbose=given.verbose) for check in checks_for(subject))
    sys.stdout.write(
        f"{results['passed']} passed, {results['failed']} failed, {results['skipped']} skipped\n"
    )
    return 1 if results["failed"] else 0


def _print_outcome(check: Check, subject: Subject, *, verbose: bool) -> str:
    outcome, line = _outcome(check, subject)
    if verbose or outcome == "failed":
        sys.stdout.write(f"{line}\n")
    return outcome


def _outcome(check: Check, subject: Subject) -> tuple[str, str]:
    try:
        check.run(subject)
    except CheckFailed as error:
        return "failed", f"FAILED  {error}"
    except NotApplicable as reason:
        return "skipped", f"skipped {check.id}: {reason}"
    return "passed", f"passed  {check.id}"
