"""OpenAI's errors beyond what holds for every provider. errors.toml in this folder has an example of each."""

from __future__ import annotations

from typing import Final

from llmopt import VerdictKind
from llmopt.compatible import Rule

RULES: Final = (
    # A model's own filter; the policy is named in the text alone.
    Rule(VerdictKind.CONTENT_FILTERED, words=r"invalid prompt.*usage polic", status=(200, 400)),
)
