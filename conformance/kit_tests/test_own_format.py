"""A plugin with a wire format of its own passes the kit, with samples that write that format."""

from kit_tests import own_format
from llmopt_conformance import conformance

test_own_format = conformance(own_format, name="own", samples=own_format.SAMPLES)
