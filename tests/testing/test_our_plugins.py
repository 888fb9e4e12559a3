"""Our own plugins pass the kit that everybody's must pass, in each of the ways they can be configured."""

import llmopt_plugin_azure
import llmopt_plugin_local
import llmopt_plugin_mistral
import llmopt_plugin_openai
from llmopt.testing import Samples, conformance
from tests.testing.local_samples import OLLAMA, TEI

test_openai = conformance(llmopt_plugin_openai)
test_mistral = conformance(llmopt_plugin_mistral)
test_azure = conformance(llmopt_plugin_azure)
test_azure_classic = conformance(
    llmopt_plugin_azure,
    samples=Samples(base_url="https://kit.openai.azure.com", options={"api_version": "2024-10-21"}),
)
test_local = conformance(llmopt_plugin_local)
test_local_tei = conformance(llmopt_plugin_local, samples=TEI)
test_local_ollama = conformance(llmopt_plugin_local, samples=OLLAMA)
