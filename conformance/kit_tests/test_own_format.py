"""A plugin with its own wire format passes the kit, given samples that write that format."""

from kit_tests import own_format
from llmopt_conformance import conformance

test_own_format = conformance(own_format, name="own", samples=own_format.SAMPLES)
