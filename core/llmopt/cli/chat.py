"""``llmopt chat``."""

from __future__ import annotations

from typing import Any

import click

from llmopt.cli.exits import Exit
from llmopt.cli.options import config, example, no_color, telling_errors


@click.command(
    "chat",
    epilog=example(
        "llmopt chat openai/gpt-5-mini",
        "llmopt chat mistral/mistral-small-latest --system 'Answer in French.' --temperature 0.2",
        "git diff | llmopt chat my-vllm/qwen3 --system 'Write a commit message for this.'",
    ),
)
@click.argument("model", metavar="PROVIDER/MODEL")
@click.option("--system", metavar="TEXT", help="What the model is told before the conversation.")
@click.option("--max-tokens", type=click.IntRange(min=1), metavar="N", help="Most tokens of an answer.")
@click.option(
    "--temperature", type=click.FloatRange(min=0), metavar="X", help="How freely to choose, 0 for hardly."
)
@click.option(
    "--top-p", type=click.FloatRange(0, 1), metavar="X", help="Share of likely tokens to choose from."
)
@click.option("--stop", multiple=True, metavar="TEXT", help="Where an answer ends; may be repeated.")
@click.option("--seed", type=int, metavar="N", help="Ask for the same answer each time.")
@click.option("--reasoning-effort", metavar="WORD", help="How long to think, such as low, medium or high.")
@click.option(
    "--deadline",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Time for each answer.",
)
@click.option("--no-stream", is_flag=True, help="Print an answer when all of it is there.")
@click.option(
    "--json", "as_json", is_flag=True, help="Events as JSON on standard output, one a line, for machines."
)
@config
@no_color
@telling_errors
def command(**options: Any) -> Exit:
    """Chat with a model.

    On a terminal this is a conversation: type a question, and the answer is printed as it comes. Ctrl-C stops an
    answer and keeps what came of it; Ctrl-C at the prompt, or Ctrl-D, ends the conversation. Otherwise standard
    input is the one question, and standard output gets the answer alone.

    With --json each line is what one event adds (text, reasoning, tool_calls, finish_reason, usage ...), and the last
    line of an answer is {"reply": ...}, all of it together, or {"error": ...}.
    """
    from llmopt.cli.chat_options import ChatOptions
    from llmopt.cli.chat_run import chat

    return chat(ChatOptions(**options))
