"""``python -m llmopt`` is the command ``llmopt``.

It hands over to `llmopt.cli.app`, which ends the process, and touches nothing itself.
"""

from llmopt.cli.app import main

if __name__ == "__main__":
    main()
