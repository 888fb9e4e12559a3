"""The official plugins pass the conformance kit in each configuration that they have."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest

import llmopt_plugin_anthropic
import llmopt_plugin_azure
import llmopt_plugin_compatible
import llmopt_plugin_google
import llmopt_plugin_local
import llmopt_plugin_mistral
import llmopt_plugin_openai
from kit_tests.anthropic_samples import ANTHROPIC
from kit_tests.google_samples import GOOGLE
from kit_tests.local_samples import OLLAMA, TEI
from llmopt_conformance import Samples, conformance
from llmopt_conformance.runner import checks_for, run
from llmopt_conformance.subject import Check, Subject
from tests.support.scale import NIGHTLY, nightly_only

# These checks look at the plugin's files, whatever its configuration.
OF_THE_FILES = ("import.", "package.", "own-errors.")
# These checks mutate response bodies, which many configurations of a plugin share.
OF_THE_DIALECT = ("errors.altered", "embeddings.altered", "catalog.altered", "chat.altered", "stream.altered")


def another_configuration(
    plugin: ModuleType,
    *,
    name: str = "",
    samples: Samples | None = None,
    repeated: tuple[str, ...] = OF_THE_FILES,
) -> Callable[[Check], None]:
    """A conformance test for a further configuration; its repeated checks run at night only.

    The quick run has them in the plugin's first configuration. A configuration that differs from the first one in its
    URLs alone runs at night only: tests/plugins asks emulated providers through it in every run.
    """
    subject = Subject(plugin, name=name, samples=samples)
    checks = [check for check in checks_for(subject) if NIGHTLY or not check.id.startswith(repeated)]

    @pytest.mark.parametrize("check", checks, ids=[check.id for check in checks])
    def test_conformance(check: Check) -> None:
        run(check, subject)

    return test_conformance


test_openai = conformance(llmopt_plugin_openai)
test_mistral = conformance(llmopt_plugin_mistral)
# Bodies of errors are read by the core, as those of the plugins above are.
test_anthropic = another_configuration(
    llmopt_plugin_anthropic, samples=ANTHROPIC, repeated=("errors.altered", "catalog.many")
)
test_google = another_configuration(
    llmopt_plugin_google, samples=GOOGLE, repeated=("errors.altered", "catalog.many")
)
test_azure = conformance(llmopt_plugin_azure)
test_azure_classic = nightly_only(
    another_configuration(
        llmopt_plugin_azure,
        samples=Samples(base_url="https://kit.openai.azure.com", options={"api_version": "2024-10-21"}),
    )
)
test_local = conformance(llmopt_plugin_local)
test_local_tei = another_configuration(llmopt_plugin_local, samples=TEI)
test_local_ollama = another_configuration(llmopt_plugin_local, samples=OLLAMA)
test_compatible = conformance(llmopt_plugin_compatible)
test_compatible_groq = nightly_only(another_configuration(llmopt_plugin_compatible, name="groq"))
test_compatible_with_gaps_in_its_base_url = another_configuration(
    llmopt_plugin_compatible, name="cloudflare-workers-ai", repeated=OF_THE_FILES + OF_THE_DIALECT
)
test_compatible_with_its_own_catalog_format = another_configuration(
    llmopt_plugin_compatible,
    name="github-models",
    repeated=(*OF_THE_FILES, "errors.altered", "embeddings.altered", "chat.altered", "stream.altered"),
)
