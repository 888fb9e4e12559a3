"""One request, from a call to a value: encode, send, judge."""
