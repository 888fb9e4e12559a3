"""``python -m llmopt.cli``, where the console script is not on the path."""

from llmopt.cli.app import main

if __name__ == "__main__":
    main()
