"""``python -m llmopt.testing NAME``: the conformance kit without pytest."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence

from llmopt.errors import LLMOptError
from llmopt.testing.kit.catalog import checks_for
from llmopt.testing.kit.check import Check, CheckFailed, NotApplicable
from llmopt.testing.kit.find import subject_named
from llmopt.testing.kit.subject import Subject


def main(arguments: Sequence[str] | None = None) -> int:
    """Hold a plugin against every check; 0 when it conforms, 1 when it does not, 2 when there is none."""
    parser = argparse.ArgumentParser(prog="python -m llmopt.testing", description=__doc__)
    parser.add_argument("plugin", help="an installed provider's name, or a module's")
    parser.add_argument(
        "--samples", default="", metavar="MODULE:NAME", help="the llmopt.testing.Samples for it"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="list the checks that it passes, too")
    given = parser.parse_args(arguments)
    try:
        subject = subject_named(given.plugin, given.samples)
    except LLMOptError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    results = Counter(_told(check, subject, verbose=given.verbose) for check in checks_for(subject))
    sys.stdout.write(
        f"{results['passed']} passed, {results['failed']} failed, {results['skipped']} skipped\n"
    )
    return 1 if results["failed"] else 0


def _told(check: Check, subject: Subject, *, verbose: bool) -> str:
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


if __name__ == "__main__":
    sys.exit(main())
