"""Reports of runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

from lite3r_jax.infer.report import few_views, summary, write_report
from lite3r_jax.kernels.registry import Decision


def test_names_that_are_no_text_are_escaped(tmp_path):
    name = os.fsdecode(b"caf\xe9.txt")
    write_report({"ignored_files": [name, "東.txt"]}, tmp_path / "report.json")
    data = (tmp_path / "report.json").read_bytes()
    assert json.loads(data)["ignored_files"] == [name, "東.txt"]
    assert "東".encode() in data


def test_a_report_is_utf8_where_the_locale_is_not(tmp_path):
    program = (
        "import sys; from pathlib import Path; from lite3r_jax.infer.report import write_report\n"
        "write_report({'scene': '\\u6771'}, Path(sys.argv[1]))"
    )
    path = tmp_path / "report.json"
    subprocess.run(
        [sys.executable, "-X", "utf8=0", "-c", program, str(path)], check=True,
        env={**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"},
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert json.loads(path.read_bytes())["scene"] == "東"


def test_the_table_of_a_run_fits_the_screen():
    scope = "bfloat16, head dim 64, query blocks of 128"
    decision = Decision("sla", scope, "blocked", "triton", "fell back", "one token: o is off by 1")
    report = {
        "scene": {
            "views": 2, "network_size": {"width": 518, "height": 392}, "known_cameras": None,
            "ignored_files": [f"a file with a name {i}.txt" for i in range(9)],
        },
        "model": {
            "weights": {"name": "a/long/folder/" * 5}, "backbone": "vggt", "parameters": 1e9,
            "name": "sla_global(keep=0.1,block=32)-fp8_dynamic", "precision": "fp8_dynamic",
            "dtype": {"compute": "bfloat16"}, "plan": "sla_global(keep=0.1,block=32)",
            "attention": dict.fromkeys(("patch", "frame", "global"), "dense (blocked)"),
            "kernels": [{"text": str(decision)}],
        },
        "device": {"kind": "cpu", "machine": "Linux x86_64, 2 cores"},
        "few_views": few_views(2, (392, 518), {"global": "sla block, keep 0.1 (triton) x 24"}),
        "memory_GiB": {"measured_peak": 1.0, "measured": "process", "predicted_peak": 1.0},
        "seconds": {"run": 1.5}, "outputs": {"npz": {"path": "predictions.npz", "bytes": 1e6}},
    }  # fmt: skip
    lines = summary(report).splitlines()
    assert max(map(len, lines)) <= 100
    text = " ".join(" ".join(lines).split())
    assert f"kernels sla ({scope}): blocked, triton failed its self-check here (one token:" in text
    assert any(line.split() == ["run", "1.50", "s"] for line in lines)
    assert any(line.split()[:2] == ["npz", "predictions.npz"] for line in lines)
    assert "note 2 views are too few for sparse attention to be faster than dense" in text


def test_sparse_attention_over_few_views_is_told():
    sparse = {"global": "sla block, keep 0.1 (triton) x 24", "frame": "dense (cudnn) x 24"}
    assert few_views(5, (518, 518), sparse) is not None
    assert few_views(6, (518, 518), sparse) is None
    assert few_views(12, (252, 252), sparse) is not None, "smaller views have fewer tokens"
    assert few_views(2, (518, 518), {"global": "dense (cudnn) x 24"}) is None
