"""Errors of hosted providers beyond what holds for every provider. errors.toml has an example of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from llmopt import Failure, Verdict, VerdictKind, compatible
from llmopt.compatible import Rule

_K: Final = VerdictKind
FAILED_REASONS: Final[Mapping[str, VerdictKind]] = {
    # DeepSeek stops so when it runs out of capacity, SGLang and vLLM when the request is dropped.
    "insufficient_system_resource": _K.OVERLOADED,
    "abort": _K.TRANSIENT,
    # Zhipu and Z.ai.
    "sensitive": _K.CONTENT_FILTERED,
    "model_context_window_exceeded": _K.ITEM_TOO_LONG,
    # Gemini: the model wrote a tool call that is none.
    "MALFORMED_FUNCTION_CALL": _K.TRANSIENT,
    "function_call_filter: MALFORMED_FUNCTION_CALL": _K.TRANSIENT,
    "UNEXPECTED_TOOL_CALL": _K.TRANSIENT,
    "MALFORMED_RESPONSE": _K.TRANSIENT,
}
"""Finish reasons of replies that the provider could not finish, and what they mean."""
_RULES: Final = (
    *(Rule(kind, codes=reason.lower(), status=(200,)) for reason, kind in FAILED_REASONS.items()),
    # OpenRouter: requests under way may cost more than is left; they will be done soon.
    Rule(_K.RATE_LIMITED, key="metadata.limit_source=openrouter_in_flight_budget"),
    # OpenRouter: the limit that the account set for this key.
    Rule(_K.QUOTA_EXHAUSTED, words="key limit exceeded", status=(401, 403)),
    # OpenRouter: the account's privacy settings leave no provider of the model.
    Rule(_K.PERMISSION, words="guardrail restrictions"),
    # Zhipu's plan without the model, MiniMax and ModelScope for one model: others may go on.
    Rule(_K.QUOTA_EXHAUSTED, codes="1113|1008", words=r"\(1008\)", scope="model"),
    # Zhipu, MiniMax, SiliconFlow, Cloudflare.
    Rule(_K.QUOTA_EXHAUSTED, codes="1308|1309|1310|2056|30001|3036|4006"),
    Rule(_K.CONTENT_FILTERED, codes="1301|1026|1027"),
    Rule(_K.NOT_FOUND, codes="1211"),
    Rule(_K.ITEM_TOO_LONG, codes="1261"),
    Rule(_K.OVERLOADED, codes="1305|3040|50603"),
    # Google names the quota: that of a day is used up until tomorrow, that of a minute is not.
    Rule(_K.QUOTA_EXHAUSTED, codes=".*perday.*", words=r"quota exceeded for metric.{0,120}limit: 0\b"),
    Rule(_K.RATE_LIMITED, codes=".*perminute.*"),
    # OpenRouter's free models, GitHub's limits by user, Zhipu's frequency: requests, in words of their own.
    Rule(
        _K.RATE_LIMITED,
        words=r"free-models-per-|exceeded for userby(?:model)?by(?:minute|day)\b|请求频率",
        status=(429,),
        exceeded="requests",
    ),
    # DashScope: tokens per minute or second.
    Rule(_K.RATE_LIMITED, codes=r"throttling\.allocationquota", status=(429,), exceeded="tokens"),
    # Bedrock: a model of the account's own that is not loaded yet.
    Rule(_K.OVERLOADED, codes=".*modelnotready.*"),
    # Volcengine: the account has not switched the model on.
    Rule(_K.PERMISSION, codes="modelnotopen"),
    # NVIDIA's own functions; a gateway for the provider behind it.
    Rule(_K.TRANSIENT, words="degraded function|upstream request failed"),
    # A gateway that quotes the path's 404 under its own 500, or under 200.
    Rule(_K.NOT_FOUND, words="^404 not_found"),
)
_THROTTLED: Final = (Rule(_K.RATE_LIMITED, codes="insufficient_quota", status=(429,)),)
"""OpenAI's code for no credit, where it means a rate."""
_KEY: Final = (Rule(_K.AUTH, codes="1000|1001|1002|1003|1004"),)
_OF_PROVIDER: Final[Mapping[str, tuple[Rule, ...]]] = {
    # DashScope means tokens per minute by it.
    "alibaba": (Rule(_K.RATE_LIMITED, codes="insufficient_quota", status=(429,), exceeded="tokens"),),
    "modelscope": _THROTTLED,
    "zai": _KEY,
    "zhipuai": _KEY,
    "cohere": (Rule(_K.AUTH, status=(498,)),),
    # Groq: no capacity for the service tier "flex".
    "groq": (Rule(_K.OVERLOADED, status=(498,)),),
}
"""Rules of one provider and its variants ("alibaba-cn"): the same word with another meaning."""


def verdict_of(failure: Failure, provider: str) -> Verdict:
    """Classify an error of a hosted provider; ``provider`` is its name in the table."""
    own = _OF_PROVIDER.get(provider.partition("-")[0], ())
    return compatible.classify(failure, rules=(*own, *_RULES))
