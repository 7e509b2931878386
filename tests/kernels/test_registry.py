"""Which implementation runs: what refuses, what is proven, and what a self-check leaves behind."""

import dataclasses
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from lite3r_jax.errors import InputError
from lite3r_jax.kernels import proofs
from lite3r_jax.kernels.block_map import check as block_map_check
from lite3r_jax.kernels.block_map.pallas_triton import select_triton
from lite3r_jax.kernels.fp8 import check as fp8_check
from lite3r_jax.kernels.fp8.fused import Product
from lite3r_jax.kernels.operators import CHECKS, OPERATORS, by_name
from lite3r_jax.kernels.registry import Check, Implementation, Operator
from lite3r_jax.kernels.self_check import self_check
from lite3r_jax.kernels.sla import check as sla_check
from lite3r_jax.kernels.sla.blocked import sla_blocked
from lite3r_jax.kernels.sla.cases import Case
from lite3r_jax.kernels.sla.limits import SlaCall
from lite3r_jax.kernels.sla.pallas_triton import sla_triton
from lite3r_jax.kernels.target import Device
from tests.kernels.devices import GPU, described_gpu, in_this_process, proof, proven_gpu

slow = pytest.mark.slow
H200 = GPU
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

    operator = Operator(
        name,
        (
            Implementation("plain", lambda x: x * x),
            Implementation("kernel", kernel, refuses, needs_proof=True),
        ),
        Path(__file__).parent,
        lambda x: "numbers" if x > 0 else "other numbers",
    )
    return operator, in_this_process(operator, checks)


@pytest.fixture
def records(tmp_path):
    with proofs.kept_in(tmp_path / "records"):
        yield tmp_path / "records"


def test_auto_takes_a_kernel_from_its_proof_on(records):
    operator, run = squares()
    assert operator.choose("auto", 3, CPU) == "plain"
    assert operator.choose("auto", 3, H200) == "plain"
    lines = []
    made = self_check(operator, "kernel", run, device=H200, report=lines.append)
    assert [result.verdict for result in made.results] == ["passed", "passed", "refused"]
    assert lines == [
        "squares kernel, of 2: fine",
        "squares kernel, of 3: fine",
        f"squares kernel: proven on NVIDIA H200: {records / made.file_name}",
    ]
    assert operator.choose("auto", 3, H200) == "kernel"
    assert operator.choose("auto", 12, H200) == "plain", "it refuses this call"
    assert operator.choose("auto", -3, H200) == "plain", "no case was of this kind"
    assert operator.choose("auto", 3, CPU) == "plain"


@pytest.mark.parametrize(
    "other",
    [
        {"device_kind": "NVIDIA B200"},
        {"compute_capability": 10.0},
        {"jax": "0.1.0"},
        {"driver": "570.1"},
        {"package": "0.0.1"},
        {"sources": "0" * 64},
        {"implementation": "other"},
        {"operator": "cubes"},
        {"results": (proofs.Result("of 2", "numbers", "failed", "5 is not 4"),)},
        {"results": (proofs.Result("of 2", "numbers", "refused", "too large"),)},
        {"results": (proofs.Result("of 2", "other numbers", "passed"),)},
    ],
    ids=str,
)
def test_a_proof_holds_for_its_kind_of_device_its_versions_and_its_code(records, other):
    operator, _ = squares()
    whole = proof(operator, "kernel", H200)
    proofs.write(whole)
    assert operator.choose("auto", 3, H200) == "kernel"
    proofs.write_record(records / whole.file_name, [dataclasses.replace(whole, **other)])
    assert operator.choose("auto", 3, H200) == "plain"


def test_a_record_of_the_package_holds_for_every_driver(records, tmp_path, monkeypatch):
    operator, _ = squares()
    whole = proof(operator, "kernel", dataclasses.replace(H200, driver="other"))
    proofs.write_record(tmp_path / "proven" / "h200.json", [whole], table="| a |")
    assert operator.choose("auto", 3, H200) == "plain"
    monkeypatch.setattr(proofs, "COMMITTED", tmp_path / "proven")
    assert operator.choose("auto", 3, H200) == "kernel"
    proofs.write(proof(operator, "kernel", H200, "wrong here"))
    assert operator.choose("auto", 3, H200) == "plain", "this machine's own record goes before"


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"proofs": 1}', '{"proofs": [{"results": []}]}', "\0", "[" * 10**5],
    ids=lambda text: text[:20],
)
def test_a_damaged_record_is_no_proof_and_is_named_and_rebuilt(records, caplog, text):
    operator, run = squares()
    path = proofs.write(proof(operator, "kernel", H200))
    path.write_text(text)
    assert operator.choose("auto", 3, H200) == "plain"
    assert f"{path}: no record of kernels' proofs" in caplog.text
    self_check(operator, "kernel", run, device=H200)
    assert operator.choose("auto", 3, H200) == "kernel"


def test_a_check_of_some_calls_keeps_what_is_known_of_others(records):
    operator, run = squares()
    proofs.write(proof(operator, "kernel", H200, scope="other numbers"))
    self_check(operator, "kernel", run, device=H200)
    assert operator.choose("auto", -3, H200) == operator.choose("auto", 3, H200) == "kernel"


def test_a_kernel_that_is_wrong_or_does_not_compile_is_not_taken_and_its_record_says_why(
    records, caplog
):
    def broken(x):
        if x == 3:
            raise RuntimeError("too many\nregisters")
        return x * x + 1

    operator, run = squares(broken, "broken squares")
    made = self_check(operator, "kernel", run, device=H200)
    assert [failure.detail for failure in made.failures] == [
        "5 is not 4", "RuntimeError: too many registers"
    ]  # fmt: skip
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert operator.choose("auto", 3, H200) == "plain"
    sentence = (
        "'kernel' failed its self-check on NVIDIA H200 for numbers (of 2: 5 is not 4); please"
        f" report it with that file: {records / made.file_name}; `lite3r device-check` checks it"
        " again"
    )
    [said] = caplog.records
    assert said.getMessage() == f"broken squares: 'plain' runs: {sentence}"
    with pytest.raises(ValueError) as error:
        operator.choose("kernel", 3, H200)
    assert str(error.value) == f"broken squares 'kernel' cannot run this: {sentence}; plain can"


def test_a_device_without_memory_says_nothing_about_a_kernel(records):
    def full(x):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 byte")

    operator, run = squares(full)
    with pytest.raises(InputError, match="Out of memory"):
        self_check(operator, "kernel", run, device=H200)
    assert operator.proof("kernel", H200, "numbers") is None


def test_a_kernel_that_wants_more_than_a_core_has_failed(records):
    def large(x):
        raise RuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 17M")

    operator, run = squares(large)
    made = self_check(operator, "kernel", run, device=H200)
    assert len(made.failures) == 2 and "memory space vmem" in made.failures[0].detail


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
        "H200 for numbers: prove it once with `lite3r device-check`"
    )


def test_what_is_not_installed_is_said_once_with_its_remedy(records, caplog):
    def plain_or(missing):
        kernel = Implementation(
            "kernel", lambda x: x * x, squares()[0]["kernel"].refuses, True, lambda: missing
        )
        plain = Implementation("plain", lambda x: x * x)
        return Operator("remedies", (plain, kernel), Path(__file__).parent)

    without = plain_or("the package p is not installed: pip install p")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert without.choose("auto", 3, H200) == "plain"
        assert without.choose("auto", 12, H200) == "plain", "it refuses this call anyway"
        assert without.choose("auto", 3, CPU) == "plain"
    [record] = caplog.records
    sentence = "the package p is not installed: pip install p"
    assert record.getMessage() == f"remedies: 'plain' runs; 'kernel' cannot: {sentence}"
    with pytest.raises(ValueError) as error:
        without.choose("kernel", 3, H200)
    assert str(error.value) == f"remedies 'kernel' cannot run this: {sentence}; plain can"
    with_it = plain_or(None)
    assert with_it.choose("kernel", 3, H200) == "kernel"


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
            if not row.needs_proof:
                continue
            checks = list(CHECKS[name](row.name))
            assert len({check.name for check in checks}) == len(checks)
            every, quick = (
                {operator.scope(check.call) for check in checks if check.quick or not only}
                for only in (False, True)
            )
            assert every == quick, "a model that is loaded has a check of each kind of call"


def test_the_self_check_refuses_what_it_cannot_say_anything_about(records, tmp_path):
    operator, run = squares()
    for name, device, message in [
        ("plain", H200, "'plain' is plain JAX and needs no proof"),
        ("kernel", dataclasses.replace(H200, described=True), "is only described here"),
    ]:
        with pytest.raises(InputError, match=message):
            self_check(operator, name, run, device=device)
    (tmp_path / "file").write_text("")
    calls = []
    with proofs.kept_in(tmp_path / "file"), pytest.raises(InputError, match="cannot be written"):
        self_check(operator, "kernel", squares(calls.append)[1], device=H200)
    assert not calls, "refused before the first case"


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
        assert proofs.read_record(path)
        for record in proofs.read_record(path):
            assert not record.failures and record.results
            assert record.sources == proofs.digest(OPERATORS[record.operator].sources)


# The self-checks themselves, by running the kernels' code on a CPU.

SMALL = Case("small", 70, 130, q_block=64, keep=0.5)


def interpreted(run):
    return lambda *args, **settings: run(*args, **settings, interpret=True)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=slow)])
def test_the_check_of_sla_passes_what_is_right(dtype):
    outcome = sla_check.outcome(interpreted(sla_triton), SMALL, dtype)
    assert outcome.wrong is None and outcome.same and max(outcome.errors) < sla_check.CAPS[dtype]


@pytest.mark.parametrize(
    "fault,named",
    [
        (lambda o, q, k, v: o * 1.001, "o is off by"),
        (lambda o, q, k, v: o + 0 * k.sum(), "o is off by inf"),
        # The gradient is no longer that of the value.
        pytest.param(
            lambda o, q, k, v: o + 0.01 * (v[:, : o.shape[1]] - jax.lax.stop_gradient(v[:, :70])),
            "dv is off by",
            marks=slow,
        ),
    ],
)
def test_the_check_of_sla_sees_a_fault(fault, named):
    def run(q, k, v, *args, **settings):
        return fault(sla_blocked(q, k, v, *args, **settings), q, k, v)

    outcome = sla_check.outcome(run, SMALL, "float32")
    assert named in (outcome.wrong or "")


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
        outcome = fp8_check.outcome(case, name, interpret=interpret)
        assert outcome.wrong is None and outcome.same
    worse = dataclasses.replace(outcome, of_product=2.0**-11, same=False)
    assert worse.wrong == "the product is off by 4.9e-04; two runs gave different bits"
