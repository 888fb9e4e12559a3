"""Command line of the benchmarks: `python -m benchmarks COMMAND --help` describes each one."""

from __future__ import annotations

import argparse
import importlib
import sys
from typing import Final

COMMANDS: Final = {
    "speed": "CPU per request and per vector, wall time, memory and start-up, beside other clients",
    "streams": "CPU per chunk of a chat stream, and how late its text arrives, beside other clients",
    "faults": "what each client does when the server fails",
    "limits": "what each client makes of a rate limit: share of the possible, refused, lost, CPU",
    "models": "lists of models: of sixty providers at once, or how fast the lists in files are read",
    "instructions": "user instructions per request under callgrind, for two checkouts side by side",
}


def main() -> None:
    """Run one benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Benchmarks of llmopt. All traffic stays on loopback.",
        epilog="\n".join(f"  {name:14}{text}" for name, text in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    name = parser.parse_args(sys.argv[1:2]).command
    # Only the chosen command is imported: the others need packages that may not be installed.
    command = importlib.import_module(f"benchmarks.{name}")
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks {name}",
        description=command.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_arguments(parser)
    command.run(parser.parse_args(sys.argv[2:]), parser)


if __name__ == "__main__":
    main()
