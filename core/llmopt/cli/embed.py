"""``llmopt embed``."""

from __future__ import annotations

from typing import Any

import click

from llmopt.cli.exits import Exit
from llmopt.cli.options import example, shared
from llmopt.cli.readers.reader import FORMATS as INPUT_FORMATS
from llmopt.cli.writers.writer import FORMATS as OUTPUT_FORMATS


@click.command(
    "embed",
    epilog=example(
        "llmopt embed notes.txt --model local/default --out notes.npy",
        "llmopt embed docs.jsonl --field body --model openai/text-embedding-3-small --out docs.parquet",
        "cut -f 2 table.tsv | llmopt embed - --model local/default --out column.jsonl",
    ),
)
@click.argument("source", metavar="INPUT")
@click.option("--model", required=True, metavar="PROVIDER/MODEL", help="Who embeds, such as local/default.")
@click.option("--out", required=True, metavar="FILE", help="File to write: .npy, .jsonl or .parquet.")
@click.option(
    "--input-format", type=click.Choice(INPUT_FORMATS), help="Format of INPUT, whatever its extension."
)
@click.option("--field", metavar="NAME", help="Field of the text in .jsonl  [default: text]")
@click.option("--column", metavar="NAME", help="Column of the text in .csv  [default: text]")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Embed only the first N texts.")
@click.option(
    "--format",
    "output_format",
    type=click.Choice(OUTPUT_FORMATS),
    help="Format of FILE, whatever its extension.",
)
@click.option("--with-text", is_flag=True, help="Write the texts too (.jsonl and .parquet).")
@click.option(
    "--dimensions",
    type=click.IntRange(min=1),
    metavar="N",
    help="Length of the vectors, for models that can shorten them.",
)
@click.option("--input-type", metavar="TYPE", help="What the texts are for, such as query or document.")
@click.option(
    "--errors",
    type=click.Choice(["raise", "return"]),
    default="raise",
    show_default=True,
    help="When a text fails: stop and keep what was finished, or go on and leave its row empty.",
)
@click.option(
    "--deadline",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Time for the whole run.",
)
@click.option("--quiet", is_flag=True, help="No progress and no closing line.")
@shared
def command(**options: Any) -> Exit:
    """Embed the texts of INPUT into a file of vectors.

    INPUT is .txt (a text a line; so is any other extension), .jsonl (--field), .csv (--column), or - for
    standard input. Blank lines are skipped. An input file is checked to its end before the first request.

    FILE gets one row for each text, in order: .npy a float32 array, .jsonl an object a line with index,
    line and embedding, .parquet these as columns. A failed text's row is NaN, or null with its error. FILE
    appears when it is whole; a run that is interrupted or fails leaves its finished rows in FILE.partial.
    """
    from llmopt.cli.embed_file import embed_file
    from llmopt.cli.embed_options import EmbedOptions

    return embed_file(EmbedOptions(**options))
