"""From the bytes of a streamed answer to events, and from events to a whole answer. Pure, without I/O."""
