"""One request, from a call to a value: prepare, send, judge."""
