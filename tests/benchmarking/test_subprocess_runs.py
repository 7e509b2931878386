"""Generators in processes of their own."""

import os
import signal

import pytest

from lite3r_jax.benchmarking.subprocess_runs import Died, in_subprocess
from lite3r_jax.errors import InputError

pytestmark = pytest.mark.slow


def letters(ending):
    yield "a", os.getpid()
    if ending == "input":
        raise InputError("file: expected b")
    if ending == "fault":
        raise KeyError("b")
    if ending == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    yield "b", os.getpid()


def test_items_come_from_another_process():
    (a, first), (b, second) = in_subprocess(letters, "")
    assert (a, b) == ("a", "b") and first == second != os.getpid()


@pytest.mark.parametrize(
    "ending,error,text",
    [
        ("input", InputError, "^file: expected b$"),
        ("fault", RuntimeError, "KeyError: 'b'"),
        ("kill", Died, "ended by SIGKILL, as systems do where memory is short"),
    ],
)
def test_what_ends_the_process_is_told_after_what_it_yielded(ending, error, text):
    yielded = []
    with pytest.raises(error, match=text):
        for item in in_subprocess(letters, ending):
            yielded.append(item[0])
    assert yielded == ["a"]
