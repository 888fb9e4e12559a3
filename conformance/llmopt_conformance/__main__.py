"""``python -m llmopt_conformance NAME``: check a plugin without pytest."""

import sys

from llmopt_conformance.runner import main

if __name__ == "__main__":
    sys.exit(main())
