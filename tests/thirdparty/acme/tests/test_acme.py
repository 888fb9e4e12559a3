import llmopt_plugin_acme
from llmopt_conformance import conformance

test_conformance = conformance(llmopt_plugin_acme)
