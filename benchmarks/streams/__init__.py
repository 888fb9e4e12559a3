"""What a streamed answer costs each client, and how late its words are. See `python -m benchmarks.streams --help`."""
