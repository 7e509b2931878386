"""The self-check of a model's kernels when it is loaded on a GPU, by injected faults."""

import dataclasses
import json
import logging
import sys
import time
import types
from functools import partial
from pathlib import Path

import pytest

from lite3r_jax.kernels import check_process, proofs, self_check
from lite3r_jax.kernels.registry import Check, Decision, Implementation, Operator, decisions
from lite3r_jax.kernels.self_check import Unavailable, check_model_kernels, in_process
from lite3r_jax.kernels.target import Device
from tests.kernels.devices import GPU, TPU, in_this_process


@pytest.fixture(autouse=True)
def records(tmp_path):
    with proofs.kept_in(tmp_path / "records"):
        yield tmp_path / "records"


class Toy:
    """Two kernels for x + 1 with faults to choose, and a model that calls them."""

    def __init__(self, name, best=lambda x: x + 1, second=lambda x: x + 1):
        self.runs = []
        self.device = GPU
        self.operator = Operator(
            name,
            (
                Implementation("plain", lambda x: x + 1),
                Implementation("second", second, needs_proof=True),
                Implementation("best", best, needs_proof=True),
            ),
            Path(__file__).parent,
            lambda x: "even numbers" if x % 2 == 0 else "odd numbers",
        )

    def checks(self, name):
        def compare(x):
            got = self.operator[name].run(x)
            return None if got == x + 1 else f"{got} is not {x + 1}"

        for x in (4, 5, 6):
            yield Check(f"of {x}", x, partial(compare, x), quick=x < 6)

    def load(self, name="auto", run=None, x=4):
        """What runs after a model that needs the operator for x was loaded."""

        def counted(operator, implementation, scopes, quick, kind):
            self.runs.append((implementation, sorted(scopes), quick))
            inner = run or in_this_process(self.operator, self.checks)
            return inner(operator, implementation, scopes, quick, kind)

        check_model_kernels(
            lambda: self.operator.choose(name, x, self.device),
            {self.operator.name: self.operator},
            device=self.device,
            run=counted,
        )
        return self.operator.choose(name, x, self.device)

    def report(self, name="auto", x=4):
        with decisions() as made:
            self.operator.choose(name, x, self.device)
        return made


def test_a_model_checks_what_it_needs_once():
    toy = Toy("once")
    assert toy.report()[0].state == "unchecked"
    assert toy.load() == toy.load() == "best"
    assert toy.runs == [("best", ["even numbers"], True)], "the quick cases of its kind of call"
    [decision] = toy.report()
    assert decision == Decision("once", "even numbers", "best", "best", "verified")
    assert str(decision) == "once (even numbers): best, verified on this kind of device"
    assert toy.load(x=5) == "best" and toy.runs[1:] == [("best", ["odd numbers"], True)]


@pytest.mark.parametrize("what", [{"driver": "590.1"}, {"kind": "NVIDIA B200"}], ids=str)
def test_another_device_or_driver_is_checked_again(what):
    toy = Toy("again")
    toy.load()
    toy.device = dataclasses.replace(GPU, **what)
    assert toy.load() == "best" and len(toy.runs) == 2


def test_another_version_of_the_package_is_checked_again(monkeypatch):
    toy = Toy("package")
    toy.load()
    monkeypatch.setattr(proofs, "package_version", lambda: "9.9")
    assert toy.load() == "best" and len(toy.runs) == 2


def test_nothing_is_checked_without_a_gpu_or_by_several_processes(monkeypatch):
    toy = Toy("elsewhere")
    toy.device = Device("cpu", "cpu")
    toy.load()
    toy.device = dataclasses.replace(GPU, described=True)
    toy.load()
    toy.device = TPU
    toy.load()
    toy.device = GPU
    monkeypatch.setattr(self_check.jax, "process_count", lambda: 2)
    assert toy.load() == "plain"
    assert not toy.runs


def test_what_fails_gives_way_to_the_next_and_is_said_once_with_what_to_send(caplog, records):
    def crash(x):
        raise RuntimeError("ptxas died")

    toy = Toy("falls back", best=lambda x: x, second=crash)
    with caplog.at_level(logging.WARNING):
        assert toy.load() == toy.load() == "plain"
    assert [name for name, *_ in toy.runs] == ["best", "second"]
    said = [r.getMessage() for r in caplog.records if "please report it" in r.getMessage()]
    assert len(said) == 1
    assert said[0].startswith(
        "falls back: 'plain' runs: 'best' failed its self-check on NVIDIA H200 for even numbers "
        f"(of 4: 4 is not 5); please report it with that file: {records}"
    )
    [decision] = toy.report()
    assert (decision.chosen, decision.best, decision.state) == ("plain", "best", "fell back")
    assert "best failed its self-check here (of 4: 4 is not 5)" in str(decision)


def test_the_second_best_is_taken_where_the_best_fails():
    toy = Toy("second best", best=lambda x: x)
    assert toy.load() == "second"
    assert toy.report()[0].state == "fell back"


def test_a_kernel_by_name_raises_when_it_fails_and_runs_when_it_passes():
    assert Toy("by name").load("second") == "second"
    with pytest.raises(ValueError, match=r"'best' failed its self-check .*; plain, second can"):
        Toy("by name, wrong", best=lambda x: x).load("best")


def test_a_check_that_cannot_be_made_leaves_the_plain_form_and_says_so(caplog, records):
    def unavailable(*_):
        raise Unavailable("the device is taken")
        yield

    toy = Toy("unavailable")
    assert toy.load(run=unavailable) == "plain"
    assert "'best': could not be checked: the device is taken" in caplog.text
    assert toy.report()[0].state == "unchecked"
    records.parent.joinpath("file").write_text("")
    with proofs.kept_in(records.parent / "file"):
        assert Toy("no place").load() == "plain"
    assert "could not be checked: " in caplog.text and "cannot be written" in caplog.text


# The process that cases run in. What it says is written down here, so that none needs a GPU.

CASE = {"case": "of 4", "scope": "even numbers"}
PASSED = CASE | {"verdict": "passed", "detail": ""}


def process(*lines, then="", **settings):
    """`self_check.in_process` with a program that prints lines and then does something."""
    text = "".join(f"{x if isinstance(x, str) else json.dumps(x)}\n" for x in lines)
    program = f"import os, sys, time\nprint({text!r}, end='', flush=True)\n{then}"
    settings = {"start_seconds": 60.0, "case_seconds": 60.0} | settings
    return list(
        in_process(
            "toy", "best", None, True, GPU.kind, command=(sys.executable, "-c", program), **settings
        )
    )


def test_results_come_from_the_lines_of_a_process_and_others_are_left_out():
    [result] = process("warning: {", CASE, "12", PASSED)
    assert result == proofs.Result("of 4", "even numbers", "passed")


@pytest.mark.parametrize(
    "then,why",
    [
        ("print('illegal address', file=sys.stderr); os._exit(3)", "code 3: illegal address"),
        ("os.abort()", "the process ended with code -6"),
        ("time.sleep(600)", "no answer in 0.2 seconds"),
    ],
)
def test_a_case_without_an_answer_failed(then, why):
    seconds = 0.2 if "sleep" in then else 60.0
    [passed, failed] = process(CASE, PASSED, CASE, then=then, case_seconds=seconds)
    assert passed.verdict == "passed" and failed.verdict == "failed"
    assert failed.scope == "even numbers" and why in failed.detail


@pytest.mark.parametrize(
    "lines,then,why",
    [
        ([{"unavailable": "no GPU"}], "", "no GPU"),
        ([], "sys.exit('no driver')", "ended with code 1: no driver"),
        ([], "time.sleep(600)", "no answer in 0.2 seconds"),
    ],
)
def test_a_process_that_never_began_says_nothing_about_a_kernel(lines, then, why):
    with pytest.raises(Unavailable, match=why):
        process(*lines, then=then, start_seconds=0.2 if "sleep" in then else 60)


CASES = {"cases": {"even numbers": 2, "odd numbers": 1}}


def test_a_process_that_ends_leaves_kinds_of_calls_that_were_not_checked():
    [passed, failed, missing] = process(CASES, CASE, PASSED, CASE, then="os._exit(3)")
    assert passed.verdict == "passed" and failed.verdict == "failed"
    assert (missing.scope, missing.case, missing.verdict) == ("odd numbers", "1 more", "missing")


def test_time_that_runs_out_leaves_kinds_of_calls_that_were_not_checked(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(self_check, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    lines = "".join(f"{json.dumps(x)}\n" for x in (CASES, CASE, PASSED))
    program = f"import time\nprint({lines!r}, end='', flush=True)\ntime.sleep(600)"
    command = sys.executable, "-c", program
    running = in_process("toy", "best", None, True, GPU.kind, command=command, end=100.0)
    assert next(running).verdict == "passed"
    now[0] = 200.0
    assert [(r.scope, r.case) for r in running] == [
        ("even numbers", "1 more"), ("odd numbers", "1 more")
    ]  # fmt: skip


def test_a_kind_of_calls_is_not_proven_before_all_its_cases_were_run():
    toy = Toy("in part")
    passed = proofs.Result("of 4", "even numbers", "passed")
    missing = proofs.Result("1 more", "even numbers", "missing", "no time")

    def in_part(*_):
        return iter([passed, missing])

    assert toy.load(run=in_part) == "plain" and toy.report()[0].state == "unchecked"
    assert toy.load() == "best", "it is checked again"
    self_check.self_check(toy.operator, "best", in_part, device=GPU)
    assert toy.report()[0].state == "verified", "what was known stays"


def test_what_there_is_no_time_for_did_not_fail():
    assert process(CASE, then="time.sleep(600)", end=time.monotonic()) == []
    code = "os._exit(1)"
    assert len(process(CASE, PASSED, then=code)) == 1, "it had answered"


def test_a_kernel_that_hangs_is_left_out():
    toy = Toy("hangs", second=lambda x: x)
    hang = partial(
        in_process,
        command=(sys.executable, "-c", f"print('{json.dumps(CASE)}', flush=True)\nwhile True: 1"),
        case_seconds=0.2,
    )
    assert toy.load(run=hang) == "plain"
    assert toy.report()[0].detail == "of 4: no answer in 0.2 seconds"


def test_the_process_finds_no_such_device_here(capsys):
    """By its own program on this machine, which has no GPU of that kind."""
    with pytest.raises(Unavailable, match="a second process finds cpu and not NVIDIA H200"):
        list(in_process("block_map", "triton", {"float32, head dim 64"}, True, GPU.kind))


def test_the_process_runs_the_cases_that_are_asked_for(capsys):
    scope = "float32, head dim 128"
    args = ["block_map", "triton", "--device", "cpu", "--scopes", scope, "--quick"]
    assert check_process.main(args) == 0
    first, *lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert first == {"cases": {scope: len(lines) / 2}}
    assert {line["scope"] for line in lines} == {scope}
    assert [line["case"] for line in lines[::2]] == [line["case"] for line in lines[1::2]]
    assert {line["verdict"] for line in lines[1::2]} == {"refused"}
    assert "this is cpu" in lines[1]["detail"]
