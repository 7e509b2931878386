"""The benchmarks of attention run, small and on a CPU, and say what they did not do."""

import re

import pytest
from jax import lax

from lite3r_jax.kernels.registry import Implementation, Operator
from lite3r_jax.kernels.sla.blocked import sla_blocked
from tools.benchmark import attention, attention_gpu

SMALL = ["--implementation", "blocked", "--dense", "blocked"]
SMALL += ["--views", "1", "--grid", "3", "4", "--keep", "0.5"]


@pytest.mark.slow
def test_the_gpu_program_proves_and_measures(capsys):
    args = [*SMALL, "--selection", "sorted", "--dtype", "float32", "--cases", "2"]
    assert attention_gpu.main(args) == 0
    printed = capsys.readouterr().out
    assert len(re.findall(r"\| float32 \| blocked \|.* True \| fine \|", printed)) == 2
    for which in ("forward", "gradient"):
        for name in ("dense", "sla block"):
            assert re.search(rf"\| 1 \| {which} \| {name}.*? \| \d+\.\d+ \|", printed)
    assert "0 checks failed, 0 measurements are missing" in printed


def test_the_gpu_program_names_what_it_had_no_time_for(capsys):
    args = [*SMALL, "--selection", "sorted", "--cases", "0", "--seconds", "0"]
    assert attention_gpu.main(args) == 1
    printed = capsys.readouterr().out
    assert printed.count("| no time |") == 5
    assert "0 checks failed, 5 measurements are missing" in printed


@pytest.mark.slow
def test_a_wrong_gradient_fails(monkeypatch, capsys):
    """One that is no longer that of the value."""

    def wrong(q, k, v, *args, **settings):
        return sla_blocked(q, k, v + 0.01 * (v - lax.stop_gradient(v)), *args, **settings)

    wrong_sla = Operator("sla", (Implementation("blocked", wrong),))
    monkeypatch.setattr(attention_gpu, "OPERATOR", wrong_sla)
    one = [attention_gpu.CASES[2]]
    assert attention_gpu.prove(["blocked"], [], ["float32"], one) == 1
    assert "FAILED" in capsys.readouterr().out


def test_the_plain_program_measures_both(capsys):
    attention.main([*SMALL, "--passes", "forward"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(re.search(r"temporary \d+ MiB, .* x dense", line) for line in lines[1:])
