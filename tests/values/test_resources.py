"""Which exceptions mean that this process or machine lacks something."""

from __future__ import annotations

import errno
import os
import pickle
import socket
import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

import llmopt
from llmopt.values.resources import as_llmopt_error, local_errors, out_of_resources

LACKING = {
    errno.EMFILE: "descriptors",
    errno.ENFILE: "descriptors",
    errno.ENOMEM: "memory",
    errno.ENOBUFS: "buffers",
    errno.EADDRNOTAVAIL: "ports",
    errno.ENOSPC: "disk",
    errno.EDQUOT: "disk",
}
OTHER = sorted(set(errno.errorcode) - set(LACKING))


def as_reported(number: int, shape: str) -> BaseException:
    """A number of the system, as it reaches a caller."""
    text = os.strerror(number)
    if shape == "joined":
        return OSError(f"Multiple exceptions: [Errno {number}] {text}, [Errno {number}] {text}")
    if shape == "import":
        return ImportError(f"/usr/lib/libx.so: cannot open shared object file: {text}")
    if shape == "file":
        return OSError(number, text, "/some/file.py")
    return OSError(number, text)


@given(number=st.sampled_from(sorted(LACKING)), shape=st.sampled_from(["plain", "file", "joined", "import"]))
def test_a_lack_of_something_is_recognised_in_every_shape(number: int, shape: str) -> None:
    """It says what is missing, and names neither a file nor a text."""
    error = out_of_resources(as_reported(number, shape), "could not connect")
    assert error is not None
    assert (error.resource, error.local, error.counts_for_breaker, error.retryable) == (
        LACKING[number],
        True,
        False,
        True,
    )
    assert str(error).startswith("could not connect: ")
    assert "file.py" not in str(error)
    assert pickle.loads(pickle.dumps(error)).resource == error.resource


@given(number=st.sampled_from(OTHER), shape=st.sampled_from(["plain", "file", "joined"]))
def test_other_errors_of_the_system_are_not(number: int, shape: str) -> None:
    """Such as a refused connection or a missing file."""
    assert out_of_resources(as_reported(number, shape)) is None


@pytest.mark.parametrize("number", sorted(LACKING))
def test_numbers_of_the_resolver_and_of_tls_are_their_own(number: int) -> None:
    """They may be equal to numbers of the system."""
    assert out_of_resources(socket.gaierror(number, "canned")) is None
    assert out_of_resources(ssl.SSLError(number, "canned")) is None


@pytest.mark.parametrize(
    ("error", "resource"),
    [(MemoryError(), "memory"), (RuntimeError("can't start new thread"), "threads")],
    ids=["memory", "threads"],
)
def test_exceptions_of_python_itself(error: Exception, resource: str) -> None:
    found = as_llmopt_error(error)
    assert isinstance(found, llmopt.OutOfResources)
    assert found.resource == resource


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("x"), ImportError("no module"), OSError("x")])
def test_a_bug_stays_what_it_is(error: Exception) -> None:
    assert as_llmopt_error(error) is None
    with pytest.raises(type(error)), local_errors("canned"):
        raise error


def test_an_error_of_llmopt_stays_what_it_is() -> None:
    error = llmopt.NotFound("x")
    assert as_llmopt_error(error) is error


def test_one_address_of_another_family_is_no_lack() -> None:
    """Without IPv6 the first address cannot be used; that the second one refuses is what the user can act on."""
    joined = f"Multiple exceptions: [Errno {errno.EADDRNOTAVAIL}] x, [Errno {errno.ECONNREFUSED}] y"
    assert out_of_resources(OSError(joined)) is None
