"""Benchmarks of llmopt beside other clients: run `python -m benchmarks --help` in a checkout."""
