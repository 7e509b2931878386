"""The record of memory plans, and the tables that are made of it."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from lite3r_jax import InputError
from tools.benchmark import plans

GIB = 2**30
DOCS = Path(__file__).parents[2] / "docs"
FORWARD = {
    "program": "forward", "device": "v5e", "backbone": "vggt", "what": "dense-bfloat16",
    "heads": ["camera", "depth"], "views": 2, "height": 518, "width": 518, "devices": 1,
    "on_host": False, "fits": True, "arguments": 2 * GIB, "outputs": 0, "temporary": GIB, "cpu": 40,
    "effort": -1.0,
}  # fmt: skip
STEP = {
    "program": "distill", "device": "v5e", "mesh": [1, 4, 1], "views": 2, "scenes": 4,
    "accumulate": 1, "height": 518, "width": 518, "fits": True, "arguments": 3 * GIB, "alias": GIB,
    "outputs": GIB, "temporary": 2 * GIB, "collectives": {"all-gather": [3, GIB]}, "cpu": 90,
    "effort": -1.0,
}  # fmt: skip
LARGE = {**FORWARD, "views": 100, "fits": False, "needs": 20 * GIB, "has": 16 * GIB}


def test_a_row_is_what_its_last_line_says_and_others_are_not_compiled():
    text = plans.tables([{**FORWARD, "cpu": 1}, FORWARD, LARGE, STEP])
    cells = "2.00 / 0.00 / 1.00 GiB; 40 s | not compiled | not compiled"
    row = f"| VGGT-1B | `dense` | v5e | {cells} | does not fit: 20.00 of 16.00 GiB; 40 s |"
    assert row in text.splitlines()
    step = "5.00 GiB | 3.00 GiB | 2.00 GiB | 3 all-gather 1.00 GiB | 90 s |"
    assert f"| v5e | 1 x 4 x 1 | 4 x 2 | {step}" in text.splitlines()
    assert text.count("not compiled") == len(plans.FORWARD) - 2 + len(plans.STEPS) - 1
    other = plans.tables(
        [{**FORWARD, "heads": ["depth"]}, {**STEP, "scenes": 8}, {**FORWARD, "effort": 0}]
    )
    assert other.count("not compiled") == len(plans.FORWARD) + len(plans.STEPS)


def test_compiling_appends_a_line_to_the_record(tmp_path):
    record = tmp_path / "record"
    lowered = jax.jit(lambda x: x @ x).lower(jnp.ones((8, 8)))
    for _ in range(2):
        outcome = plans.compiled(lowered, None, {"program": "a product"}, record)
    assert isinstance(outcome, plans.Compiled)
    lines = plans.read(record)
    assert len(lines) == 2 and lines[0]["program"] == "a product" and lines[0]["fits"]
    assert lines[0]["arguments"] == 8 * 8 * 4 and lines[0]["collectives"] == {}


def test_a_program_that_is_too_large_is_a_line_too_and_other_errors_are_none(tmp_path):
    class Refused(jax.stages.Lowered):
        def __init__(self, text):
            self.text = text

        def compile(self, compiler_options=None, **_):
            raise jax.errors.JaxRuntimeError(self.text)

    text = "RESOURCE_EXHAUSTED: Ran out of memory in hbm. Used 21.50G of 15.75G hbm."
    outcome = plans.compiled(Refused(text), None, {"program": "x"}, tmp_path / "record")
    assert "needs 21.50 of 15.75 GiB" in str(outcome)
    (line,) = plans.read(tmp_path / "record")
    assert not line["fits"] and line["needs"] == int(21.5 * GIB)
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        plans.compiled(Refused("INTERNAL: something else"), None, {"program": "x"}, None)


def test_a_page_gets_the_tables_between_its_marks(tmp_path, capsys):
    record, page = tmp_path / "record", tmp_path / "page.md"
    record.write_text(json.dumps(FORWARD) + "\n")
    page.write_text("before\n")
    with pytest.raises(SystemExit, match="expected a line <!-- plans of TPUs: begin -->"):
        plans.main([str(record), "--page", str(page)])
    page.write_text(f"before\n{plans.BEGIN}\nold\n{plans.END}\nbehind\n")
    plans.main([str(record), "--page", str(page)])
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("behind\n") and "old" not in text
    assert "2.00 / 0.00 / 1.00 GiB" in text
    record.write_text("{}\n")
    with pytest.raises(InputError, match="line 1: expected an object with a program"):
        plans.read(record)


def test_the_page_has_what_the_record_says():
    text = plans.tables(plans.read(DOCS / "tpu_plans.jsonl"))
    assert text in (DOCS / "benchmarks.md").read_text()
