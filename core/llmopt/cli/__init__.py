"""The command line ``llmopt``, a file for each command."""
