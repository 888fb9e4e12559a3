"""Error responses in the OpenAI-compatible dialect: what each means, as a `Verdict`.

The rules of the plugin come first, then the ones below, which hold for every provider: money, content filters, keys,
models, sizes, load. They look at codes and at words. Then the HTTP status decides; for an error under a 2xx status
that states no other, its type or code does.

Pure: no I/O, no clock, no state. `classify` is the default of the hook `classify_error`. It reads a wait from the
body only; headers are read by the engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from llmopt.compatible.refusals import body_wait, exceeded_limit
from llmopt.compatible.rules import Rule, first_rule, rule_text
from llmopt.hookspecs import hookimpl
from llmopt.values.calls import Dimension
from llmopt.values.http import Failure, Verdict, VerdictKind, VerdictScope

_K = VerdictKind
_MONEY: Final = r"balance|credits?|funds|spend(?:ing)? (?:limit|cap|quota)s?|budget|free tier|free allocation"
_GONE: Final = (
    r"insufficient|not enough|not sufficient|exhausted|exceed(?:ed|s|ing)?|used up|used all|depleted|r[ua]n out of"
    r"|overdue|reach(?:ed|ing)|too low|does ?n[o']t have|do not have|negative|no (?:more |remaining )?"
)
_NEAR: Final = r"\b[^.!?]{0,32}?\b"
_FLOW: Final = (
    r"(?:per|a) (?:minute|min|second|sec)\b|\b(?:rpm|tpm|rps|tps|qps|qpm)\b|concurren|thinking|reasoning"
)
"""Money words beside these are about a rate, or about a parameter."""
_BAD_INPUT: Final = (200, 400, 413, 422, 500)
_FULL: Final = (200, 400, 429, *range(500, 600))
_NO_TOKENS: Final = r"\b(?![\d,]| ?(?:tokens?|char|bytes|words|[km]i?b\b))"
_TEXTS: Final = r"(?:inputs?|texts?|documents?|items?|strings?|sentences?|requests?|elements?|entries)"

RULES: Final = (
    # Money. First, because a request without credit must never be repeated; providers send it with any status.
    Rule(_K.QUOTA_EXHAUSTED, status=(402,)),
    Rule(
        _K.QUOTA_EXHAUSTED,
        codes=r"insufficient_(?:quota|balance|balance_error|credits?|funds|user_quota)|credit_balance_exhausted"
        r"|(?:organization|project)_spend_limit_exceeded|organization_usage_limit_exceeded"
        r"|billing_hard_limit_reached|(?:enforced|contract)_spend_limit_reached|billing_error|billing_not_active"
        r"|pre_consume_token_quota_failed|exceeded_current_quota_error|arrearage|.*overdue.*|setlimitexceeded"
        r"|allocationquota\.freetieronly|budget_exceeded|token_quota_reached|quota_for_entity_exceeded|creditserror"
        r"|payment_(?:method_)?required|not_enough_balance",
    ),
    Rule(
        _K.QUOTA_EXHAUSTED,
        words=rf"\b(?:{_GONE}){_NEAR}(?:{_MONEY})\b|\b(?:{_MONEY}){_NEAR}(?:{_GONE})\b"
        r"|\brecharge\b|\btop[ -]up\b|good standing|余额不足|额度(?:不足|已用尽|已用完|失败)|欠费|(?:today's|daily|weekly|monthly) quota|(?:plan|package|subscription|trial) (?:has )?(?:expired|ended)|try again tomorrow"
        r"|usage limits? (?:reached|exceeded)|reached your (?:\w+ ){0,3}usage limits?|(?:hour|hourly|daily|session|weekly|monthly) usage limit"
        r"|exceeded your current quota|out of (?:\w+ ){0,2}quota|billing hard limit|no payment method"
        r"|payment (?:method )?(?:is )?required|valid credit card|(?:past|unpaid) invoices?|in arrears"
        r"|billing (?:is )?(?:disabled|inactive|not (?:enabled|active))|quota is not enough|can only afford"
        r"|tokens limit exceeded: \d+ > \d+",
        unless=_FLOW,
    ),
    # A rate is refused with 429.
    Rule(
        _K.QUOTA_EXHAUSTED,
        words=r"quota\b.{0,60}exceeded|exceeded.{0,60}\bquota",
        status=(403,),
        unless=_FLOW,
    ),
    # What a content filter refuses.
    Rule(
        _K.CONTENT_FILTERED,
        codes=r"content_filter(?:ed)?|content_policy_violation|data_?inspection_?failed|.*sensitive_?content.*"
        r"|sensitive_words_detected|responsibleaipolicyviolation|safety|prohibited_content|moderation(?:_.*)?",
        words=r"content exists risk|high risk|inappropriate content|(?:usage|content) (?:guidelines|polic)"
        r"|敏感|(?<!case.)sensitive|requires? moderation|moderation (?:block|flag|fail|refus|reject)|flagged (?:as|by|for)"
        r"|safety (?:system|filter|reasons|settings|polic)|blocked by .{0,30}(?:content|safety) filter",
        unless=r"permission|header|case",
    ),
    Rule(_K.CONTENT_FILTERED, key="metadata.reasons", status=(200, 400, 403)),
    # Keys and places.
    Rule(_K.AUTH, codes=r"(?:.*\.)?(?:invalid_?api_?key|api_?key_?invalid|incorrect_api_key)"),
    Rule(
        _K.AUTH,
        words=r"api key (?:is )?(?:not valid|invalid|expired|not found|missing)"
        r"|(?:incorrect|invalid|missing|wrong) (?:api[ _-]?key|access token|credentials)"
        r"|invalid token(?! id|s\b| at)|无效的令牌|not authenticated"
        r"|(?:authentication|authorization|certification) failed",
        status=(200, 400, 403),
    ),
    Rule(_K.AUTH, words=r"\bunauthori[sz]ed\b", status=(200, 400)),
    Rule(
        _K.PERMISSION,
        codes="unsupported_country_region_territory",
        words=r"location is not supported|country, region, or territory",
    ),
    # Models.
    Rule(
        _K.NOT_FOUND,
        # By code as well as by status 404: an error event of a stream has no status.
        codes=r"model_not_(?:found|supported|exist|available)|unavailable_model|(?:invalid|unknown)_model"
        r"|invalidendpointormodel\..*",
    ),
    Rule(
        _K.NOT_FOUND,
        words=r"not a valid model|no longer available|end of life|no endpoints found for|no available channel|无可用渠道"
        r"|\b(?:unknown|invalid|unavailable) model\b|model you requested is unavailable"
        r"|\b(?:model|endpoint|deployment):? (?:[`'\"]?[^\s`'\"]{1,80}[`'\"]? )?(?:is |was )?"
        r"(?:does not exist|not found|not supported|not available|(?:has been )?(?:retired|deprecated|decommissioned))",
        status=(200, 400, 401, 404, 410, 429, 503),
    ),
    # Too many texts, or too many tokens, in one request.
    Rule(
        _K.BATCH_TOO_LARGE,
        words=r"max(?:imum)? (?:allowed )?batch size(?: of| is|:)? ([\d,]+)|batch size limit(?: of| is|:)? ([\d,]+)"
        rf"|\b(?:batch|{_TEXTS}|contents|array)\b[^.!?]{{0,60}}\b(?:larger|greater|more|bigger|longer) than ([\d,]+){_NO_TOKENS}"
        rf"|at most ([\d,]+) {_TEXTS}"
        rf"|(?:number|count) of (?:input )?{_TEXTS}[^.!?]{{0,40}}?(?:at most|exceeds?|less than or equal to|<=|no more than|limited to)"
        rf" ([\d,]+){_NO_TOKENS}"
        rf"|(?:max(?:imum)?|most) (?:number|count) of (?:input )?{_TEXTS}[\w ]{{0,30}}?(?: is| of|:) ([\d,]+){_NO_TOKENS}"
        rf"|(?:up to|limit(?:ed)? (?:of|to|is)|no more than|max(?:imum)?(?: of)?) ([\d,]+) (?:input )?{_TEXTS}\b"
        r"|不得超过 ?(\d+) ?[条个]|不能超过 ?(\d+) ?[条个]|input array (?:max|maximum|length)\D{0,20}([\d,]+)"
        r"|array with maximum length ([\d,]+)|\$\.input.{0,120}?\b([\d,]+) or (?:fewer|less)",
        status=(*_BAD_INPUT, 429),
        unless=r"max_(?:completion_|output_)?tokens.{0,30}(?:must|should|too)|per (?:minute|second|day|hour|month)",
        limit="max_items",
    ),
    Rule(
        _K.BATCH_TOO_LARGE,
        words=r"only (?:a |one )?(?:single )?(?:input|text|string|document) (?:is |at a time)"
        r"|only (?:supports? |accepts? |takes? |allows? )?(?:one|a single|single) (?:input|text|string|document)"
        r"|batch(?:ed|ing|es)?(?: inputs?| requests?| embeddings?)? (?:is|are) not (?:supported|allowed)"
        r"|(?:multiple|several|list of) (?:inputs|texts|strings) (?:is|are) not (?:supported|allowed)"
        r"|body\.input: (?:str type expected|input should be a valid string)",
        status=_BAD_INPUT,
        limit="max_items",
        number=1,
    ),
    Rule(
        _K.BATCH_TOO_LARGE,
        codes="max_tokens_per_request",
        words=r"max(?:imum)?(?: of)? ([\d,]+) tokens per request"
        r"|max(?:imum)? (?:allowed )?tokens per (?:submitted )?(?:batch|request)(?: is| of|:)? ([\d,]+)",
        limit="max_tokens",
    ),
    # More than the tokens of a whole minute: waiting never helps. With "Used" instead it would pass.
    Rule(
        _K.BATCH_TOO_LARGE,
        words=r"^(?:rate limit[^.]{0,40}\. )?request too large(?:.*?\blimit:? ([\d,]+))?|body too large(?:.*?max size: ([\d,]+) tokens)?",
        status=(400, 413, 429),
        limit="max_tokens",
    ),
    Rule(
        _K.BATCH_TOO_LARGE,
        words=rf"too many {_TEXTS} in|too many inputs|batch (?:is |size is )?too (?:large|big)|payload (?:is )?too (?:large|big)"
        r"|request (?:entity|body|payload) (?:is )?too (?:large|big)",
        status=_BAD_INPUT,
    ),
    # A text that is longer than the model takes.
    Rule(
        _K.ITEM_TOO_LONG,
        codes=r"context_length_exceeded|exceed_context_size_error|context_window_exceeded",
        words=r"(?:maximum|max|model's|model) (?:allowed )?(?:context|prompt|sequence|input) length(?: is| of|:)? \(?([\d,]+)"
        r"|maximum (?:allowed )?(?:input )?length of ([\d,]+)|token limit: ([\d,]+)|available context size(?: of)? \(?([\d,]+)"
        r"|n_ctx: ([\d,]+)|tokens?`?[^.]{0,40} must be <= ([\d,]+)|(?:less|fewer) than ([\d,]+) tokens|tokens allowed \(([\d,]+)"
        r"|length should be \[\d+, ([\d,]+)\]",
        status=(*_BAD_INPUT, 429),
        unless=r"max_(?:completion_|output_)?tokens.{0,30}(?:must|should|too)|per (?:minute|second|day)",
        limit="max_item_tokens",
    ),
    Rule(
        _K.ITEM_TOO_LONG,
        words=r"(?:prompt|input|text) (?:is )?too long|prompt exceeds max|exceeds the (?:available )?context|context window exceeds"
        r"|exceeds the maximum number of tokens allowed|(?:must|should) have (?:less than|at most) \d+ characters"
        r"|too long for (?:the |this |requested )?model",
        status=(*_BAD_INPUT, 429),
    ),
    # Load and time.
    Rule(
        _K.OVERLOADED,
        codes=r".*overloaded.*|model_capacity_exhausted|slow_down",
        words=r"overloaded|at (?:maximum |full )?capacity|high demand|(?:too|really) busy|(?:server|system|service|engine) is busy"
        r"|capacity (?:temporarily )?exceeded|负载|访问量过大",
        status=_FULL,
    ),
    Rule(_K.TIMEOUT, codes=r"(?:.*[._])?time_?out(?:_error)?", status=(408, 500, 502, 503, 504)),
)
"""The rules that hold for every provider, in order. What only one provider says belongs into its plugin."""

_BY_STATUS: Final[Mapping[int, VerdictKind]] = {
    401: _K.AUTH,
    403: _K.PERMISSION,
    404: _K.NOT_FOUND,
    408: _K.TIMEOUT,
    410: _K.NOT_FOUND,
    413: _K.BATCH_TOO_LARGE,
    424: _K.TRANSIENT,
    425: _K.TIMEOUT,
    429: _K.RATE_LIMITED,
    451: _K.PERMISSION,
    # nginx's status for a client that has gone: a gateway in between has given up.
    499: _K.TRANSIENT,
    # 501 and 505 are about the request (RFC 9110, 15.6): repeating it does not help.
    501: _K.BAD_REQUEST,
    503: _K.OVERLOADED,
    504: _K.TIMEOUT,
    505: _K.BAD_REQUEST,
    # Cloudflare: the server behind it did not answer in time.
    524: _K.TIMEOUT,
    # Anthropic's status for overload.
    529: _K.OVERLOADED,
}
"""Verdicts by HTTP status, for an error without a known code."""
_BY_TYPE: Final[Mapping[str, VerdictKind]] = {
    "server_error": _K.TRANSIENT,
    "internal_server_error": _K.TRANSIENT,
    "internalservererror": _K.TRANSIENT,
    "api_error": _K.TRANSIENT,
    "timeout_error": _K.TIMEOUT,
    "overloaded_error": _K.OVERLOADED,
    "service_unavailable_error": _K.OVERLOADED,
    "unavailable_error": _K.OVERLOADED,
    "rate_limit_error": _K.RATE_LIMITED,
    "rate_limit_exceeded": _K.RATE_LIMITED,
    "invalid_request_error": _K.BAD_REQUEST,
    "badrequesterror": _K.BAD_REQUEST,
    "authentication_error": _K.AUTH,
    "permission_error": _K.PERMISSION,
    "permission_denied_error": _K.PERMISSION,
    "not_found_error": _K.NOT_FOUND,
    "notfounderror": _K.NOT_FOUND,
    "exceed_context_size_error": _K.ITEM_TOO_LONG,
}
"""Verdicts by lower-case ``type`` or ``code``, for an error that came with a 2xx status and states no other."""


_STREAM_WORDS: Final = (
    Rule(_K.RATE_LIMITED, words=r"rate limit|too many requests|(?:requests?|qps[\w ]*) limit reached"),
)
"""Rules for an error that came with a 2xx status and states no other."""
_ONE_REQUEST: Final = ("can only afford", "fewer max_tokens", "tokens limit exceeded")
_WAITS: Final = frozenset({_K.RATE_LIMITED, _K.OVERLOADED, _K.TRANSIENT})


@hookimpl(trylast=True, specname="classify_error")
def classify(failure: Failure, *, rules: Iterable[Rule] = ()) -> Verdict:
    """Classify an error: by the rules of a plugin, by those of every provider, by its status.

    Args:
        failure: the error.
        rules: the plugin's own; the first one that applies decides.
    """
    error = failure.error
    match = first_rule(failure, (*rules, *RULES))
    rule = match[0] if match is not None else None
    kind = rule.kind if rule is not None else _kind_without_rule(failure)
    return Verdict(
        kind=kind,
        code=error.code or error.type,
        message=error.message,
        param=error.param,
        limit=match[1] if match is not None else None,
        retry_after=body_wait(failure) if kind in _WAITS else None,
        scope=(rule.scope if rule is not None else None) or _scope(kind, failure),
        exceeded=_exceeded(kind, rule, failure),
    )


def _exceeded(kind: VerdictKind, rule: Rule | None, failure: Failure) -> Dimension | None:
    if kind is not _K.RATE_LIMITED:
        return None
    return (rule.exceeded if rule is not None else None) or exceeded_limit(failure)


def _scope(kind: VerdictKind, failure: Failure) -> VerdictScope:
    """What an exhausted quota shuts out: one request, one model, or everything that the credential pays for."""
    if kind is not _K.QUOTA_EXHAUSTED:
        return "account"
    message = rule_text(failure)
    if any(words in message for words in _ONE_REQUEST):
        return "request"
    per_model = "model" in message or any("permodel" in code for code in failure.error.codes)
    return "model" if per_model else "account"


def _kind_without_rule(failure: Failure) -> VerdictKind:
    # OpenRouter and streams send errors with status 200, which says nothing about them.
    if not 200 <= failure.stated_status < 300:
        return _kind_by_status(failure.stated_status)
    kind = next((_BY_TYPE[code] for code in failure.error.codes if code in _BY_TYPE), None)
    if kind is None and (match := first_rule(failure, _STREAM_WORDS)) is not None:
        kind = match[0].kind
    if kind is None and failure.operation == "chat":
        # An unexplained error in a stream or in place of a reply is usually temporary.
        return _K.TRANSIENT
    return kind or _K.INVALID_RESPONSE


def _kind_by_status(status: int) -> VerdictKind:
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if 400 <= status < 500:
        return _K.BAD_REQUEST
    if 500 <= status < 600:
        return _K.TRANSIENT
    return _K.UNEXPECTED
