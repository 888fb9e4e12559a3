import llmopt_plugin_acme
from llmopt.testing import conformance

test_conformance = conformance(llmopt_plugin_acme)
