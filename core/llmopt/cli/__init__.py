"""The command line: ``llmopt embed``, ``models``, ``plugins`` and ``doctor``."""

from llmopt.cli.app import main as main
