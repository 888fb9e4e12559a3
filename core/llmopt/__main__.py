"""``python -m llmopt`` is the command ``llmopt``."""

from llmopt.cli import main

if __name__ == "__main__":
    main()
