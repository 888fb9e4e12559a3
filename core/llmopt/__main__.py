"""``python -m llmopt`` is the command ``llmopt``."""

from llmopt.cli.app import main

if __name__ == "__main__":
    main()
