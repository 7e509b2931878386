"""Which implementation runs: what refuses, what is proven, and what a self-check leaves behind."""

import dataclasses
import json
import logging
from pathlib import Path

import jax.numpy as jnp
import pytest

from lite3r_jax.errors import InputError
from lite3r_jax.kernels import proofs, prove
from lite3r_jax.kernels.block_map import check as block_map_check
from lite3r_jax.kernels.block_map.pallas_triton import select_triton
from lite3r_jax.kernels.fp8 import check as fp8_check
from lite3r_jax.kernels.fp8.fused import Product
from lite3r_jax.kernels.operators import CHECKS, OPERATORS, by_name
from lite3r_jax.kernels.registry import Check, Implementation, Operator
from lite3r_jax.kernels.sla import check as sla_check
from lite3r_jax.kernels.sla.blocked import sla_blocked
from lite3r_jax.kernels.sla.cases import Case
from lite3r_jax.kernels.sla.limits import SlaCall
from lite3r_jax.kernels.sla.pallas_triton import sla_triton
from lite3r_jax.kernels.target import Device
from tests.kernels.devices import described_gpu, proof, proven_gpu

slow = pytest.mark.slow
H200 = Device("gpu", "NVIDIA H200", 9.0)
CPU = Device("cpu", "cpu")


def squares(kernel=lambda x: x * x, name="squares"):
    """An operator of one number: x^2 by JAX, or by a kernel for GPUs and x below 10."""

    def refuses(device, x):
        if device.platform != "gpu":
            return f"its kernel is for GPUs and this is {device.platform}"
        return None if x < 10 else f"{x} is not below 10"

    def checks(name):
        def compare(x):
            return None if kernel(x) == x * x else f"{kernel(x)} is not {x * x}"

        return [Check(f"of {x}", x, lambda x=x: compare(x)) for x in (2, 3, 11)]

    return Operator(
        name,
        (
            Implementation("plain", lambda x: x * x),
            Implementation("kernel", kernel, refuses, needs_proof=True),
        ),
        Path(__file__).parent,
    ), checks


@pytest.fixture
def records(tmp_path):
    with proofs.kept_in(tmp_path / "records"):
        yield tmp_path / "records"


def test_auto_takes_a_kernel_from_its_proof_on(records):
    operator, checks = squares()
    assert operator.choose("auto", 3, CPU) == "plain"
    assert operator.choose("auto", 3, H200) == "plain"
    lines = []
    made = prove.self_check(operator, "kernel", checks, device=H200, report=lines.append)
    assert made.passed == ("of 2", "of 3") and made.refused == ("of 11",) and not made.failures
    assert lines == [
        "squares kernel, of 2: fine",
        "squares kernel, of 3: fine",
        f"proven on NVIDIA H200: {records / made.file_name}",
    ]
    assert operator.choose("auto", 3, H200) == "kernel"
    assert operator.choose("auto", 12, H200) == "plain", "it refuses this call"
    assert operator.choose("auto", 3, CPU) == "plain"


@pytest.mark.parametrize(
    "other",
    [
        {"device_kind": "NVIDIA B200"},
        {"compute_capability": 10.0},
        {"jax": "0.1.0"},
        {"sources": "0" * 64},
        {"implementation": "other"},
        {"operator": "cubes"},
        {"failures": ("of 2: 5 is not 4",)},
    ],
    ids=lambda other: next(iter(other)),
)
def test_a_proof_holds_for_its_kind_of_device_its_jax_and_its_code(records, other):
    operator, _ = squares()
    whole = proof(operator, "kernel", H200)
    proofs.write(whole)
    assert operator.choose("auto", 3, H200) == "kernel"
    changed = dataclasses.replace(whole, **other)
    (records / whole.file_name).write_text(json.dumps(dataclasses.asdict(changed)))
    assert operator.choose("auto", 3, H200) == "plain"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"passed": 1}', "\0"])
def test_a_damaged_record_is_no_proof_and_is_named(records, caplog, text):
    operator, checks = squares()
    path = proofs.write(proof(operator, "kernel", H200))
    path.write_text(text)
    assert operator.choose("auto", 3, H200) == "plain"
    assert f"{path}: no record of a kernel's proof" in caplog.text
    prove.self_check(operator, "kernel", checks, device=H200)
    assert operator.choose("auto", 3, H200) == "kernel"


def test_a_kernel_that_is_wrong_or_does_not_compile_is_not_taken_and_its_record_says_why(
    records, caplog
):
    def broken(x):
        if x == 3:
            raise RuntimeError("out of\nregisters")
        return x * x + 1

    operator, checks = squares(broken, "broken squares")
    made = prove.self_check(operator, "kernel", checks, device=H200)
    assert made.failures == ("of 2: 5 is not 4", "of 3: RuntimeError: out of registers")
    with caplog.at_level(logging.WARNING):
        assert operator.choose("auto", 3, H200) == "plain"
    assert "'kernel' failed its self-check on NVIDIA H200 (of 2: 5 is not 4)" in caplog.text
    assert operator.choose("kernel", 3, H200) == "kernel", "by name it is the one that runs"


def test_one_sentence_says_that_a_kernel_waits_for_its_proof(records, caplog):
    operator, _ = squares(name="sentences")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            operator.choose("auto", 3, H200)
        operator.choose("auto", 12, H200)
        operator.choose("auto", 3, CPU)
        operator.choose("plain", 3, H200)
    [record] = caplog.records
    assert record.getMessage() == (
        "sentences: 'plain' runs; 'kernel' is meant to be faster, but was never proven on NVIDIA "
        "H200: prove it once with `lite3r prove-kernels sentences`"
    )


def test_a_name_that_cannot_be_honored_says_why_and_what_can():
    operator, _ = squares()
    with pytest.raises(ValueError) as error:
        operator.choose("kernel", 3, CPU)
    assert str(error.value) == (
        "squares 'kernel' cannot run this: its kernel is for GPUs and this is cpu; plain can"
    )
    with pytest.raises(ValueError, match="unknown implementation 'kernal' of squares, there are: "):
        operator.choose("kernal", 3, CPU)
    alone = Operator("alone", operator.implementations[1:], operator.sources)
    with pytest.raises(ValueError, match=r"'auto' cannot run this: 'kernel': its .*; no impl"):
        alone.choose("auto", 3, CPU)


def test_names_are_given_once_and_what_needs_a_proof_has_sources_and_checks():
    row = Implementation("plain", abs)
    with pytest.raises(ValueError, match="two implementations of one name"):
        Operator("a", (row, row))
    with pytest.raises(ValueError, match="'kernel' needs a proof, and names no sources"):
        Operator("a", (row, Implementation("kernel", abs, needs_proof=True)))
    with pytest.raises(ValueError, match="two operators of one name: a, b, a"):
        by_name(*(Operator(name, (row,)) for name in "aba"))
    for name, operator in OPERATORS.items():
        for row in operator.implementations:
            assert not row.needs_proof or next(iter(CHECKS[name](row.name)))


def test_the_self_check_refuses_what_it_cannot_say_anything_about(records, tmp_path):
    operator, checks = squares()
    for name, device, message in [
        ("kernel", CPU, "'kernel' cannot run on cpu: its kernel is for GPUs and this is cpu"),
        ("plain", H200, "'plain' is plain JAX and needs no proof"),
        ("kernel", dataclasses.replace(H200, described=True), "is only described here"),
    ]:
        with pytest.raises(InputError, match=message):
            prove.self_check(operator, name, checks, device=device)
    (tmp_path / "file").write_text("")
    calls = []
    with proofs.kept_in(tmp_path / "file"), pytest.raises(InputError, match="cannot be written"):
        prove.self_check(operator, "kernel", squares(calls.append)[1], device=H200)
    assert not calls, "refused before the first case"


def test_the_command_names_what_cannot_run_here_and_refuses_what_is_asked_for(tmp_path, capsys):
    records = ["--records", str(tmp_path)]
    assert prove.main(records) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(" cannot")[0] for line in printed] == [
        "sla 'mosaic'", "sla 'triton'", "block_map 'triton'", "fp8 'triton'", "fp8 'mosaic'",
    ]  # fmt: skip
    assert all("cannot run on cpu" in line for line in printed)
    for args, message in [
        (["sla", "--implementation", "triton"], "'triton' cannot run on cpu: its kernels are for"),
        (["sla", "--implementation", "tritan"], "expected one of sla: reference, blocked"),
        (["slaa"], "slaa: expected an operator: dense, sla, block_map, fp8"),
    ]:
        assert prove.main([*args, *records]) == 2
        assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name,call,plain,proven",
    [
        ("sla", SlaCall("block", 64, jnp.bfloat16, 128, 64), "blocked", "triton"),
        ("fp8", Product(2748, 1024, 3072, jnp.bfloat16), "xla", "mosaic"),
    ],
)
def test_one_rule_for_every_operator(name, call, plain, proven):
    operator = OPERATORS[name]
    assert operator.choose("auto", call) == plain
    with described_gpu():
        assert operator.choose("auto", call) == plain
        assert operator.choose(proven, call) == proven
    with proven_gpu():
        assert operator.choose("auto", call) == proven


def test_committed_records_are_of_this_code():
    """A record of older code proves nothing: prove again, or remove it."""
    for path in proofs.COMMITTED.glob("*.json"):
        record = proofs.Proof(**json.loads(path.read_text()))
        assert path.name == record.file_name
        assert not record.failures and record.passed
        assert record.sources == proofs.digest(OPERATORS[record.operator].sources)


# The self-checks themselves, by running the kernels' code on a CPU.

SMALL = Case("small", 70, 130, q_block=64, keep=0.5)


def interpreted(run):
    return lambda *args, **settings: run(*args, **settings, interpret=True)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=slow)])
def test_the_check_of_sla_passes_what_is_right(dtype):
    found = sla_check.outcome(interpreted(sla_triton), SMALL, dtype)
    assert found.wrong is None and found.same and max(found.errors) < sla_check.CAPS[dtype]


@pytest.mark.parametrize(
    "fault,named",
    [
        (lambda o, q, k, v: o * 1.001, "o is off by"),
        (lambda o, q, k, v: o + 0 * k.sum(), "o is off by inf"),
    ],
)
def test_the_check_of_sla_sees_a_fault(fault, named):
    def run(q, k, v, *args, **settings):
        return fault(sla_blocked(q, k, v, *args, **settings), q, k, v)

    found = sla_check.outcome(run, SMALL, "float32")
    assert named in (found.wrong or "")


@pytest.mark.parametrize("kind", ["whole numbers", pytest.param("real numbers", marks=slow)])
def test_the_check_of_the_selection_passes_what_is_right_and_sees_a_fault(kind):
    case = block_map_check.CASES[0]
    run = interpreted(select_triton)
    assert block_map_check.wrong(run, case, kind) is None

    def one_off(*args, **settings):
        critical, negligible = run(*args, **settings)
        return critical.at[..., 0].set(1), negligible

    def unsorted(*args, **settings):
        critical, negligible = run(*args, **settings)
        return critical[..., ::-1], negligible

    def too_few(*args, **settings):
        critical, negligible = run(*args, **settings)
        return critical.at[0, 0, 0].set(case.columns), negligible

    for fault in (one_off, unsorted, too_few):
        assert block_map_check.wrong(fault, case, kind) is not None


@pytest.mark.parametrize("case", fp8_check.CASES[1:2], ids=lambda case: case.name)
def test_the_check_of_float8_passes_what_is_right(case):
    case = dataclasses.replace(case, inputs=64, outputs=32)
    for name, interpret in (("xla", False), ("triton", True)):
        found = fp8_check.outcome(case, name, interpret=interpret)
        assert found.wrong is None and found.same
    worse = dataclasses.replace(found, of_product=2.0**-11, same=False)
    assert worse.wrong == "the product is off by 4.9e-04; two runs gave different bits"
