"""Decoding of streamed responses: bytes to events, and events to a whole reply. Pure, without I/O."""
