"""A plugin with a wire format of its own passes the kit, with samples that write that format."""

from llmopt_conformance import conformance
from tests.testing import own_format

test_own_format = conformance(own_format, name="own", samples=own_format.SAMPLES)
