"""`lite3r device-check` on a machine without a GPU or TPU, and by injected faults."""

import dataclasses
import json
import time

import pytest

from lite3r_jax.benchmarking.device_check import attention, models, products, run, tuning
from lite3r_jax.benchmarking.device_check.rows import Figures, Job, Row, done, table
from lite3r_jax.benchmarking.device_check.sizes import REAL, Sizes
from lite3r_jax.benchmarking.subprocess_runs import Died
from lite3r_jax.cli import device_check as command
from lite3r_jax.kernels import proofs
from lite3r_jax.kernels.operators import OPERATORS
from lite3r_jax.kernels.registry import Check
from lite3r_jax.kernels.sla.limits import SlaCall
from tests.kernels.devices import GPU, TPU, in_this_process, proven_tpu

ROW = Row("part", 2, "what", "first")
SMALLEST = Sizes((1,), (3, 4), (0.5,), True)


@pytest.fixture(autouse=True)
def records(tmp_path):
    with proofs.kept_in(tmp_path / "records"):
        yield tmp_path / "records"


def test_times_rates_and_ratios_are_of_the_first_variant():
    rows = [
        Row("part", 2, "what", "first", Figures(4.0, 8 * 10**9, 2**30)),
        Row("part", 2, "what", "second", Figures(1.0, 8 * 10**9)),
        Row("part", 8, "what", "first", note="not measured: a | b"),
        Row("part", 8, "what", "second", Figures(1.0)),
    ]
    assert table(rows).splitlines()[2:] == [
        "| part | 2 | what | first | 4.000 | 1.00 | 2 | 1.00 |  |",
        "| part | 2 | what | second | 1.000 | 4.00 | 8 |  |  |",
        "| part | 8 | what | first |  |  |  |  | not measured: a / b |",
        "| part | 8 | what | second | 1.000 |  |  |  |  |",
    ]


def test_what_cannot_run_and_what_there_is_no_time_for_is_named():
    def refused():
        raise ValueError("no such kernel\nhere")

    jobs = [Job(ROW, refused), Job(ROW, lambda: Figures(1.0))]
    wrong, fine = done(jobs, time.time() + 600)
    assert wrong.note == "not measured: no such kernel here" and fine.figures == Figures(1.0)
    assert {row.note for row in done(jobs, 0.0)} == {"not measured: no time"}


@pytest.mark.slow
def test_every_part_measures_something_here():
    end = time.time() + 600
    of_attention = list(attention.rows(SMALLEST, end))
    measured = {row.variant for row in of_attention if row.figures}
    own = {"dense", "dense, plain JAX", "sla blocked, keep 0.5", "sorted"}
    assert measured - {"dense, PyTorch"} == own
    for row in of_attention:
        if any(row.variant.startswith(peer.variant) for peer in attention.PEERS):
            assert "not measured: no " in row.note and "; pip install " in row.note
        elif not row.figures and row.variant != "dense, PyTorch":
            assert "cannot run this: " in row.note and "this is cpu" in row.note
    of_linears = list(products.rows(SMALLEST, end))
    assert {row.variant for row in of_linears if row.figures} == {"bfloat16", "xla"}
    assert all(row.figures for row in models.depth_rows(SMALLEST, end))
    [of_model] = models.model_rows("vggt", models.VARIANTS[2], SMALLEST, end)
    assert of_model.figures is not None and of_model.figures.work > 0


def test_pytorch_is_measured_by_a_program_of_a_clone(monkeypatch):
    class Ended:
        returncode, stdout, stderr = 0, "2.0\n", ""

    commands = []

    def run(command, **_):
        commands.append(command[2:])
        return Ended

    monkeypatch.setattr(attention.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(attention.subprocess, "run", run)
    layout = attention.TokenLayout(2, 5, (3, 4), "global")
    figures = attention._by_torch(layout, "gradient")
    assert figures == Figures(2.0, 34 * 34 * 2 * 64 * 16 * 7)
    words = ["tools.benchmark.attention_torch", "--pass", "gradient", "--tokens", "34"]
    assert commands == [words]
    attention._by_torch(layout, "forward", attention.PEERS[0], 0.1)
    assert commands[1][-4:] == ["--of", "sla", "--keep", "0.1"]
    Ended.returncode, Ended.stderr = 1, "Traceback\nCUDA out of memory"
    with pytest.raises(ValueError, match="CUDA out of memory"):
        attention._by_torch(layout, "forward")
    without = {"torch": "torch", "tools": "tools"}.get
    monkeypatch.setattr(attention.importlib.util, "find_spec", without)
    for peer, package in zip(attention.PEERS, ("thu-ml/SLA", "nvidia-cudnn-frontend"), strict=True):
        with pytest.raises(ValueError, match=f"no {peer.module} here; pip install .*{package}"):
            attention._by_torch(layout, "forward", peer, 0.1)
    names = [job.row.variant for job in attention.jobs(REAL)]
    peers = tuple(peer.variant for peer in attention.PEERS)
    assert sum(name.startswith(peers) for name in names) == 2, "what is missing is named once"
    monkeypatch.setattr(attention.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="no torch here; install it beside the package"):
        attention._by_torch(layout, "forward")


@pytest.mark.slow
def test_the_program_finds_the_device_of_a_new_process():
    assert run.found_device() == run.target.device()


def test_without_a_gpu_it_runs_to_the_end_and_says_so(tmp_path, capsys, monkeypatch):
    """The command as a user has it, with a process for its part."""
    monkeypatch.setattr(run, "found_device", run.target.device)
    monkeypatch.setattr(run, "PARTS", {"heads": (models.camera_rows,)})
    record = tmp_path / "new" / "record.json"
    assert command.main(["kernels", "heads", "--record", str(record)]) == 0
    printed = capsys.readouterr().out
    assert "There is no GPU and no TPU" in printed
    for name in ("sla triton", "sla mosaic", "sla tpu", "block_map triton", "fp8 mosaic"):
        assert f"{name}: not checked, its kernels are for GPUs or TPUs" in printed
    assert "0 cases of kernels failed, 0 of 1 measurements are missing" in printed
    kept = json.loads(record.read_text())
    assert kept["proofs"] == [] and len(kept["rows"]) == 1 and kept["table"] in printed


def test_what_is_done_is_kept_when_time_runs_out(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "found_device", lambda: run.Device("cpu", "cpu"))
    record = tmp_path / "record.json"
    assert command.main(["--minutes", "0", "--record", str(record)]) == 0
    rows = json.loads(record.read_text())["rows"]
    assert len(rows) > 20 and {row["note"] for row in rows} == {"not measured: no time"}
    assert f"{len(rows)} of {len(rows)} measurements are missing" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words,message",
    [
        (["kernel"], "'kernel' is not known; did you mean 'kernels'?"),
        (["--minutes", "-1"], "minutes: expected a number that is not negative"),
        (["--record", "FILE/record.json"], "cannot be written"),
        (["--record", "FOLDER"], "is a folder; name a file"),
    ],
)
def test_bad_input_is_refused_before_anything_is_measured(
    words, message, tmp_path, capsys, monkeypatch
):
    (tmp_path / "FILE").write_text("")
    (tmp_path / "FOLDER").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "found_device", lambda: pytest.fail("it began"))
    assert command.main(words) == 2
    assert message in capsys.readouterr().err


def test_tuning_is_done_on_request_and_says_what_it_needs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "found_device", lambda: run.Device("cpu", "cpu"))
    monkeypatch.setattr(run, "in_subprocess", lambda part, *args: part(*args))
    record = tmp_path / "record.json"
    assert command.main(["tune", "--record", str(record)]) == 0
    [row] = json.loads(record.read_text())["rows"]
    assert row["part"] == "tune" and "are for NVIDIA GPUs and this is cpu" in row["note"]
    assert row["note"] in capsys.readouterr().out
    [row] = tuning.rows(SMALLEST, 0.0, device=run.Device("gpu", "Tesla T4", 7.5))
    assert "compute capability 8.0 or more and Tesla T4 has 7.5" in row.note


def on_a(device, monkeypatch, checks, parts=()):
    """As if this device were here, with other checks and parts, all in this process."""
    monkeypatch.setattr(run, "found_device", lambda: device)
    monkeypatch.setattr(run, "CHECKS", checks)
    monkeypatch.setattr(run, "PARTS", dict(parts))
    monkeypatch.setattr(run, "in_subprocess", lambda part, *args: part(*args))

    def runner(name, implementation, scopes, quick, kind, end):
        assert end > time.monotonic() and not quick and scopes is None
        inner = in_this_process(OPERATORS[name], checks[name], device)
        return inner(implementation, implementation, scopes, quick, kind)

    monkeypatch.setattr(run, "in_process", runner)


def test_a_record_proves_what_passed_and_not_what_failed(tmp_path, monkeypatch):
    def checks(name):
        yield Check("right", SlaCall("block", 64, "float32", 64, 64), lambda: None)
        yield Check("wrong", SlaCall("block", 64, "float16", 64, 64), lambda: "dv is off by 1")

    on_a(GPU, monkeypatch, {"sla": checks})
    record, lines = tmp_path / "record.json", []
    outcome = run.device_check(record=record, report=lines.append)
    assert outcome.failed == 1 and "sla triton, wrong: dv is off by 1" in lines
    assert any(line.startswith("sla mosaic: not checked: ") for line in lines)
    [kept] = proofs.read_record(record)
    assert [result.case for result in kept.results] == ["right"]
    assert json.loads(record.read_text())["failed"][0]["results"][1]["detail"] == "dv is off by 1"
    monkeypatch.setattr(proofs, "COMMITTED", tmp_path)
    with proofs.kept_in(tmp_path / "empty"):
        for dtype, proven in (("float32", True), ("float16", False)):
            scope = f"{dtype}, head dim 64, query blocks of 64"
            assert OPERATORS["sla"].proven("triton", GPU, scope) == proven
    assert not OPERATORS["sla"].proven("triton", GPU, scope), "this machine's own record"


def test_on_a_tpu_its_kernels_are_checked_and_a_gpus_are_refused_by_name(tmp_path, monkeypatch):
    calls = [SlaCall("block", 64, dtype, 64, 64) for dtype in ("bfloat16", "float16")]
    on_a(TPU, monkeypatch, {"sla": lambda name: [Check("a case", c, lambda: None) for c in calls]})
    record, lines = tmp_path / "record.json", []
    outcome = run.device_check(record=record, report=lines.append)
    assert lines[0].endswith(", TPU v5 lite, libtpu 0.0.42.1") and outcome.failed == 0
    for name, maker in (("triton", "NVIDIA"), ("mosaic", "Hopper")):
        [said] = [line for line in lines if line.startswith(f"sla {name}: not checked: ")]
        assert f"cannot run on TPU v5 lite: its kernels are for {maker} GPUs" in said
        assert said.endswith("and this is TPU v5 lite")
    [kept] = proofs.read_record(record)
    assert (kept.implementation, kept.device_kind, kept.driver) == ("tpu", TPU.kind, TPU.driver)
    assert [result.verdict for result in kept.results] == ["passed", "refused"]
    choose = OPERATORS["sla"].choose
    assert choose("auto", calls[0], TPU) == "tpu", "its record is this machine's"
    assert choose("auto", calls[1], TPU) == "blocked", "the kernel has no float16"
    for other in ({"kind": "TPU v6 lite"}, {"driver": "0.0.43"}):
        assert choose("auto", calls[0], dataclasses.replace(TPU, **other)) == "blocked"


@pytest.mark.parametrize("platform,own,others", [
    ("tpu", "tpu", {"triton", "mosaic"}), ("gpu", "triton", {"tpu"}), ("cpu", "triton", {"tpu"}),
])  # fmt: skip
def test_rows_are_of_the_kernels_of_the_device(platform, own, others):
    sizes = dataclasses.replace(SMALLEST, platform=platform)
    names = [row.variant for row in attention.rows(sizes, 0.0)]
    assert f"sla {own}, keep 0.5" in names and own in names and "dense" in names
    words = {word for name in names for word in name.replace(",", "").split()}
    words |= {row.variant for row in products.rows(sizes, 0.0)}
    assert not words & others and ("PyTorch" in words) == (platform != "tpu")


def test_float8_products_are_a_row_that_names_a_tpu_without_them():
    with proven_tpu():
        [row] = models.model_rows("vggt", models.VARIANTS[2], SMALLEST, time.time() + 600)
    assert row.figures is None and "TPU v5 lite has no float8 products" in row.note


def test_a_process_that_dies_leaves_rows_that_say_so(monkeypatch, tmp_path):
    def part(sizes, end):
        if end:
            yield Row("part", 2, "what", "first", Figures(1.0))
            raise Died("the process was ended by SIGSEGV")
        yield from (Row("part", 2, "what", name) for name in ("first", "second"))

    def other(sizes, end):
        yield Row("other", 2, "what", "first", Figures(2.0))

    on_a(GPU, monkeypatch, {}, {"part": (part,), "other": (other,)})
    outcome = run.device_check(record=tmp_path / "record.json", report=lambda line: None)
    assert [row.figures and row.figures.ms for row in outcome.rows] == [1.0, None, 2.0]
    assert outcome.rows[1].note == "not measured: the process was ended by SIGSEGV"
    assert len(json.loads((tmp_path / "record.json").read_text())["rows"]) == 3
