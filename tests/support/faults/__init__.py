"""A byte-exact fault server over raw sockets.

`FaultServer` runs it, a `Script` of steps says what a connection does, and `ROWS` is the fault matrix, ready to play.
`tests.support.faults.client` is a bare client to look at it with.
"""

from tests.support.faults.clock import ManualClock
from tests.support.faults.connection_rows import (
    followed_by,
    misframed,
    strange_answer,
    with_headers,
    with_raw_header,
)
from tests.support.faults.encodings import encoded_as, gzip_bomb, gzipped, truncated_gzip
from tests.support.faults.fault import Fault
from tests.support.faults.limits import MaxItems, Poison, TokenLimit
from tests.support.faults.openai import (
    answer_openai,
    chat_payload,
    embeddings_answer,
    embeddings_payload,
    error_answer,
    inputs_of,
    models_payload,
    stream_answer,
    stream_events,
    tokens_of,
    vector_for,
)
from tests.support.faults.outages import CloseAfter, Crossed, Flaky, OutageSchedule, flap
from tests.support.faults.payload_rows import catalog, changed, rewritten
from tests.support.faults.ports import full_backlog, refused_port
from tests.support.faults.quota import Grant, RateLimited
from tests.support.faults.request import MalformedRequestError, Request, RequestReader
from tests.support.faults.response import Answer, Framing, chunked, json_answer
from tests.support.faults.rows import ROWS, faults_of, find_fault
from tests.support.faults.script import (
    Close,
    Drip,
    HalfClose,
    Playable,
    ReadBytes,
    ReadRequest,
    ReadUntil,
    Repeat,
    Reply,
    Reset,
    Respond,
    Responder,
    Script,
    Send,
    Signal,
    Stall,
    StartTls,
    Step,
    Wait,
    cut,
)
from tests.support.faults.server import FaultServer
from tests.support.faults.status_rows import bomb, flood, rate_limited, redirect, retry_after
from tests.support.faults.thread import ServerThread, serving
from tests.support.faults.tls import (
    Certificate,
    can_make_certificates,
    expired_certificate,
    good_certificate,
    self_signed_certificate,
    wrong_host_certificate,
)

__all__ = [
    "ROWS",
    "Answer",
    "Certificate",
    "Close",
    "CloseAfter",
    "Crossed",
    "Drip",
    "Fault",
    "FaultServer",
    "Flaky",
    "Framing",
    "Grant",
    "HalfClose",
    "MalformedRequestError",
    "ManualClock",
    "MaxItems",
    "OutageSchedule",
    "Playable",
    "Poison",
    "RateLimited",
    "ReadBytes",
    "ReadRequest",
    "ReadUntil",
    "Repeat",
    "Reply",
    "Request",
    "RequestReader",
    "Reset",
    "Respond",
    "Responder",
    "Script",
    "Send",
    "ServerThread",
    "Signal",
    "Stall",
    "StartTls",
    "Step",
    "TokenLimit",
    "Wait",
    "answer_openai",
    "bomb",
    "can_make_certificates",
    "catalog",
    "changed",
    "chat_payload",
    "chunked",
    "cut",
    "embeddings_answer",
    "embeddings_payload",
    "encoded_as",
    "error_answer",
    "expired_certificate",
    "faults_of",
    "find_fault",
    "flap",
    "flood",
    "followed_by",
    "full_backlog",
    "good_certificate",
    "gzip_bomb",
    "gzipped",
    "inputs_of",
    "json_answer",
    "misframed",
    "models_payload",
    "rate_limited",
    "redirect",
    "refused_port",
    "retry_after",
    "rewritten",
    "self_signed_certificate",
    "serving",
    "strange_answer",
    "stream_answer",
    "stream_events",
    "tokens_of",
    "truncated_gzip",
    "vector_for",
    "with_headers",
    "with_raw_header",
    "wrong_host_certificate",
]
