"""One request and all its attempts: the two drivers of the steps in `llmopt.engine.steps`.

::

    retry( admit, waiting where a policy makes it wait -> send -> parse or raise -> complete or fail )

The order of the policies is that of `RequestSteps.admit`; no policy is asked here. Slot, lease and permit are released on
every way out, cancellation included: `RequestSteps.release` does not await.

`LaneAttempt` is the lane: a first attempt that runs by callbacks. Nearly all of them find a free slot, a lease and an
idle connection, so that nothing has to be awaited until the response: no task and no coroutine. The request is written
by `LiveEndpoint.try_send`, and the rest runs in the callback of the connection. `Pipeline` goes on where the lane stopped:
at the wait that it could not skip, at a response that is parsed in a thread, or after a failure, with the second attempt.
Streams pass the same steps; see `llmopt.engine.streaming`.

I/O happens in the transport of the endpoint and in a token provider; the pipeline awaits both, and the waits of the
policies. Large responses are parsed in a worker thread, and large bodies are compressed in one. What runs in a callback
runs in a copy of the context of the caller that began the request. A context variable stops clients inside an attempt
from retrying as well. Both drivers belong to one request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import nullcontext, suppress
from contextvars import Context, copy_context
from functools import partial
from typing import Any, Final, Generic

from attrs import define, field

from llmopt.engine.attempt import AttemptScope
from llmopt.engine.responses import T
from llmopt.engine.steps import Admission, RequestSteps, Wait
from llmopt.engine.telemetry import CANCELLED, OK
from llmopt.errors import AuthError, LLMOptError, ProviderError
from llmopt.policies.retry import retry_guard
from llmopt.policies.tasks import run_in_thread
from llmopt.values.http import HttpResponse
from llmopt.values.resources import as_llmopt_error

_NOT_BOUND: Final = nullcontext()


# Without a repr, which would show the texts of the call.
@define(eq=False, repr=False)
class LaneAttempt(Generic[T]):
    """An attempt, as far as it has come.

    Attributes:
        steps: of the request.
        admission: the steps up to the send.
        blocked: what has to be awaited before the next of them, None for nothing.
        scope: what the attempt has acquired, None before it may be sent.
        sending: the request on its connection, None before and after.
        response: what was received, None before.
        succeeded: whether it has a value.
        value: the result.
        error: how it failed, None if it did not.
        over: whether the request has ended.
        on_done: called when it is no longer on its connection, unless it was given up.
    """

    steps: RequestSteps[T]
    admission: Admission
    blocked: Wait | None = None
    scope: AttemptScope | None = None
    sending: Any = None  # a `Sending` of the connection pool
    response: HttpResponse | None = None
    succeeded: bool = False
    value: T = field(init=False)
    error: Exception | None = None
    over: bool = False
    on_done: Callable[[], object] | None = None
    _context: Context = field(factory=copy_context)

    def start(self) -> None:
        """Take the steps up to the send, as far as nothing has to be awaited. Raises nothing that a request can fail of."""
        with self.steps.bound() if self.steps.recording else _NOT_BOUND:
            try:
                self.blocked = next(self.admission, None)
            except Exception as error:  # noqa: BLE001 - the pipeline raises it
                self.error = error
            else:
                if self.blocked is None and (scope := self.steps.scope) is not None:
                    self._send(scope)

    def _send(self, scope: AttemptScope) -> None:
        self.scope = scope
        # What prevents it shows when the pipeline sends the request.
        with suppress(Exception):
            self.sending = scope.endpoint.try_send(scope.encoded, partial(self._received, scope))
        if self.sending is not None:
            self.steps.mark_sent(scope)
            scope.endpoint.metrics.lane += 1

    def _received(self, scope: AttemptScope, outcome: HttpResponse | LLMOptError) -> None:
        """The connection has the response, or has failed."""
        self._context.run(self._finish, scope, outcome)

    def _finish(self, scope: AttemptScope, outcome: HttpResponse | LLMOptError) -> None:
        self.sending = None
        with self.steps.bound() if self.steps.recording else _NOT_BOUND:
            try:
                self._accept(scope, outcome)
            except Exception as error:  # noqa: BLE001 - the pipeline raises it
                self.error = error
            if self.error is not None:
                self.steps.release()
        # Forgotten, so that no cycle of references is left to the garbage collector.
        on_done, self.on_done = self.on_done, None
        if on_done is not None:
            on_done()

    def _accept(self, scope: AttemptScope, outcome: HttpResponse | LLMOptError) -> None:
        steps = self.steps
        try:
            if not isinstance(outcome, HttpResponse):
                raise outcome
            self.response = outcome
            steps.received()
            if len(outcome.body) >= steps.max_parsed_on_loop:
                return
            value = steps.parse(scope, outcome)
        except Exception as error:  # noqa: BLE001 - the pipeline raises it
            self.error = steps.fail(scope, error, self.response)
        else:
            self.value = steps.complete(scope, outcome, value)
            self.succeeded = True
            self.end(OK)

    async def ended(self) -> bool:
        """Wait until it is no longer on its connection; whether it has succeeded.

        Raises:
            LLMOptError: it has failed.
        """
        if self.sending is not None:
            done = asyncio.get_running_loop().create_future()
            # A caller that was cancelled meanwhile has cancelled the future.
            self.on_done = lambda: None if done.done() else done.set_result(None)
            await done
        if self.error is not None:
            raise self.error
        return self.succeeded

    def end(self, outcome: str) -> None:
        """End the request, unless it has ended; what is still on its connection is given up."""
        if not self.over:
            self.over = True
            if self.sending is not None:
                self.sending.abort()
                self.sending = None
                self.steps.cancel(None)
            self.steps.release()
            if self.steps.recording:
                self.steps.end(outcome)


class Pipeline(Generic[T]):
    """One request and all its attempts.

    Args:
        first: the first attempt, as far as it has come.
    """

    def __init__(self, first: LaneAttempt[T]) -> None:
        self._steps: Final = first.steps
        self._first: Final = first

    async def run(self) -> T:
        """Send the request, with retries, and return its parsed response.

        Raises:
            LLMOptError: with provider, model, endpoint, request id and all attempts filled in.
        """
        steps, outcome = self._steps, CANCELLED
        try:
            try:
                value = await self._attempt(1)
            except LLMOptError as error:
                if not steps.may_retry:
                    raise
                value = await self._run_retries(error)
            outcome = OK
        except Exception as error:
            failure = as_llmopt_error(error) or error
            outcome = type(failure).__name__
            steps.explain(failure)
            if failure is error:
                raise
            raise failure from failure.__cause__
        else:
            return value
        finally:
            self._end(outcome)

    def _end(self, outcome: str) -> None:
        self._first.end(outcome)

    async def _run_retries(self, error: LLMOptError) -> T:
        # Loaded already, see `LiveEndpoint`: a process without free descriptors could not import it now.
        from llmopt.policies.retry_loop import with_retries

        steps = self._steps
        return await with_retries(
            error,
            self._attempt,
            steps.retry_policy,
            deadline=steps.request.deadline,
            budget=lambda _: steps.retry_budget,
            facts=steps.retry_facts,
            on_retry=steps.retry_scheduled,
        )

    async def _attempt(self, number: int) -> T:
        """Send one HTTP request, or raise the error why none may be sent."""
        steps, attempt = self._steps, self._first
        if number > 1:
            attempt = LaneAttempt(steps, steps.admit(number))
        try:
            while True:
                scope = attempt.scope = attempt.scope or await self._admit(attempt)
                try:
                    return attempt.value if await attempt.ended() else await self._send(attempt, scope)
                except ProviderError as error:
                    if not await self._can_be_changed(scope, error):
                        raise
                steps.release()
                attempt = LaneAttempt(steps, steps.admit(number))
        finally:
            steps.release()

    async def _admit(self, attempt: LaneAttempt[T]) -> AttemptScope:
        """Take the steps up to the send, and await what they wait for."""
        if attempt.error is not None:
            raise attempt.error
        admission = attempt.admission
        try:
            wait = attempt.blocked or next(admission)
            while True:
                try:
                    with nullcontext() if wait.cause is None else self._steps.waiting(wait.cause):
                        granted = await wait.begin()
                except Exception as error:  # noqa: BLE001 - thrown in, where it is raised
                    wait = admission.throw(error)
                else:
                    wait = admission.send(granted)
        except StopIteration as admitted:
            return admitted.value  # type: ignore[no-any-return] # of `Admission`

    async def _send(self, attempt: LaneAttempt[T], scope: AttemptScope) -> T:
        """Send the request, or go on with the response that the lane has."""
        steps = self._steps
        try:
            if attempt.response is None:
                steps.mark_sent(scope)
            # The transport may call llmopt itself, whose retries would multiply with these.
            with retry_guard() if scope.endpoint.custom_transport else nullcontext():
                value = await self._receive(attempt, scope)
        except Exception as error:
            failure = steps.fail(scope, error, attempt.response)
            if failure is error:
                raise
            raise failure from failure.__cause__
        except asyncio.CancelledError:
            steps.cancel(attempt.response)
            raise
        return self._complete(attempt, scope, value)

    async def _receive(self, attempt: LaneAttempt[T], scope: AttemptScope) -> T:
        steps, response = self._steps, attempt.response
        if response is None:
            response = attempt.response = await scope.endpoint.send(scope.encoded)
            steps.received()
        if len(response.body) >= steps.max_parsed_on_loop:
            return await run_in_thread(steps.parse, scope, response)
        return steps.parse(scope, response)

    def _complete(self, attempt: LaneAttempt[T], scope: AttemptScope, value: T) -> T:
        return self._steps.complete(scope, attempt.response, value)  # type: ignore[arg-type] # it has been parsed

    async def _can_be_changed(self, scope: AttemptScope, error: ProviderError) -> bool:
        """Whether the request can be sent at once without what the endpoint refused."""
        if isinstance(error, AuthError) and not scope.endpoint.config.credential.is_static:
            # The function that gives the credential may call llmopt itself, as above.
            with suppress(LLMOptError), retry_guard():
                self._steps.learn_credential(scope, await scope.endpoint.settings())
        return self._steps.learn_refusal(scope, error)
