"""What needs no Triton of the kernels in its language: refusals and the table of launches."""

import dataclasses
import json
import re

import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lite3r_jax.errors import InputError
from lite3r_jax.kernels import proofs
from lite3r_jax.kernels.jax_triton_call import why_not
from lite3r_jax.kernels.sla import launches
from lite3r_jax.kernels.sla.api import OPERATOR
from lite3r_jax.kernels.sla.launches import COMPILED, KERNELS, Row, read, write
from lite3r_jax.kernels.sla.limits import HEAD_DIMS, Q_BLOCKS, SlaCall
from lite3r_jax.kernels.target import Device
from tests.kernels.devices import GPU, described_gpu

BOTH = {"jax-triton": "0.3.1", "triton": "3.7.1"}
CALL = SlaCall("block", 64, "bfloat16", 128, 64)


@pytest.mark.parametrize(
    "jax_version,installed,plugin,message",
    [
        ("0.10.2", BOTH, True, None),
        ("0.11.2", BOTH | {"jax-triton": "0.4.1"}, True, None),
        ("0.10.2", {}, True, "jax-triton is not installed.*pip install 'lite3r_jax.triton.'"),
        ("0.10.2", {"jax-triton": "0.3.1"}, True, "package triton is not installed"),
        ("0.10.2", BOTH | {"jax-triton": "0.4.1"}, True, "pip install 'jax-triton==0.3.1'"),
        ("0.11.2", BOTH, True, "0.3.1 does not work with jax 0.11.2.*'jax-triton==0.4.1'"),
        ("0.12.0.1", BOTH | {"jax-triton": "0.4.1"}, True, "does not work with jax 0.12.0.1.*0.11"),
        ("0.10.2", BOTH, False, "needs jax's CUDA plugin.*lite3r_jax.cuda13."),
    ],
)
def test_what_is_missing_is_said_with_its_remedy(jax_version, installed, plugin, message):
    reason = why_not(jax_version, installed, plugin)
    if message is None:
        assert reason is None
    else:
        assert reason is not None and re.search(message, reason)


def test_a_device_that_is_unfit_comes_before_what_is_not_installed():
    for kind, message in [("Tesla T4", "has 7.5"), ("cpu", "this is cpu")]:
        device = Device("cpu", kind) if kind == "cpu" else None
        with described_gpu(kind), pytest.raises(ValueError, match=message):
            OPERATOR.choose("jax_triton", CALL, device)
    with described_gpu():
        assert OPERATOR.choose("auto", CALL) == "blocked"


def test_the_table_has_a_launch_for_every_call_that_kernels_are_made_for():
    for kind in ("A100", "RTX 3090", "RTX 4090", "H200", "B200", "RTX 5090", "Some GPU of 2030"):
        capability = {"A": 8.0, "H": 9.0, "B": 10.0, "S": 11.0}.get(kind[0], 8.9)
        device = Device("gpu", f"NVIDIA {kind}", capability)
        for dtype in ("bfloat16", "float16", "float32"):
            for head_dim in HEAD_DIMS:
                for q_block in Q_BLOCKS:
                    call = SlaCall("block", head_dim, dtype, q_block, 64)
                    reason = launches.too_little_shared_memory(device, call)
                    assert reason is None, reason
                    chosen = launches.launches(device, call)
                    assert max(x.rows for x in vars(chosen).values()) <= q_block


def test_what_was_timed_on_a_kind_of_device_comes_first(tmp_path):
    with proofs.kept_in(tmp_path):
        plain = launches.launches(GPU, CALL)
        rows = [row for row in read(COMPILED) if row.device == "compute capability 9.0"]
        mine = [
            dataclasses.replace(row, device=GPU.kind, warps=2, microseconds=12.5)
            for row in rows
            if (row.kernel, row.dtype, row.head_dim) == ("sla_forward", "half", 64)
        ]
        write(launches.user_table(GPU), mine, "in a test")
        timed = launches.launches(GPU, CALL)
        assert (timed.forward.warps, plain.forward.warps) != (2, 2) and timed.forward.warps == 2
        assert timed.key_gradient == plain.key_gradient
        other = Device("gpu", "NVIDIA H100", 9.0)
        assert launches.launches(other, CALL) == plain
        assert read(launches.user_table(GPU)) == tuple(mine)
    with pytest.raises(InputError):
        (tmp_path / "file").write_text("")
        write(tmp_path / "file" / "table.json", mine, "in a test")


ROW = dataclasses.asdict(Row(GPU.kind, "sla_forward", "half", 64, 128, 64, 4, 3, 100, 0, 1000))
HEAD = {"format": launches.FORMAT, "made": "in a test"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        json.dumps({"format": "another", "rows": []}),
        json.dumps({**HEAD, "rows": [{}]}),
        json.dumps({**HEAD, "rows": [{**ROW, "warps": 0}]}),
        json.dumps({**HEAD, "rows": [{**ROW, "warps": 3}]}),
        json.dumps({**HEAD, "rows": [{**ROW, "stages": "3"}]}),
        json.dumps({**HEAD, "rows": [{**ROW, "rows": 256}]}),
        json.dumps({**HEAD, "rows": [{**ROW, "kernel": "rm"}]}),
    ],
)
def test_a_damaged_table_is_ignored_with_a_warning(text, tmp_path, caplog):
    with proofs.kept_in(tmp_path):
        plain = launches.launches(GPU, CALL)
        launches.user_table(GPU).write_text(text)
        assert launches.launches(GPU, CALL) == plain
    assert "it is ignored" in caplog.text and launches.user_table(GPU).name in caplog.text


VALUE = st.sampled_from([None, True, "", "half", [], {}, 0, -1, 2**70, 1.5]) | st.integers(0, 512)


@given(st.dictionaries(st.sampled_from([*ROW]), VALUE))
def test_any_change_of_a_row_is_a_row_or_ignored(tmp_path_factory, change):
    path = tmp_path_factory.getbasetemp() / "table.json"
    path.write_text(json.dumps({**HEAD, "rows": [{**ROW, **change}]}))
    for row in read(path):
        assert row.launch.rows <= row.q_block and row.kernel in KERNELS
        assert all(type(x) is int and x > 0 for x in dataclasses.astuple(row.launch))


def test_shapes_of_a_call_are_known_by_their_dtypes():
    assert launches.dtype_class(jnp.bfloat16) == launches.dtype_class("float16") == "half"
    assert launches.dtype_class(jnp.float32) == "float32"
