"""What each client costs: CPU per request and per vector, wall time, memory, import. See `python -m benchmarks.speed --help`."""
