"""The official plugins pass the conformance kit, in each configuration that they have."""

import llmopt_plugin_azure
import llmopt_plugin_compatible
import llmopt_plugin_local
import llmopt_plugin_mistral
import llmopt_plugin_openai
from kit_tests.local_samples import OLLAMA, TEI
from llmopt_conformance import Samples, conformance

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
test_compatible = conformance(llmopt_plugin_compatible)
test_compatible_groq = conformance(llmopt_plugin_compatible, name="groq")
test_compatible_with_gaps = conformance(llmopt_plugin_compatible, name="cloudflare-workers-ai")
test_compatible_with_a_list_of_its_own = conformance(llmopt_plugin_compatible, name="github-models")
