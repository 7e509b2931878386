"""The command line: a deployed model and its report, and one line for every kind of bad input."""

import jax
import pytest

import tools.export_deployment as command
from lite3r_jax.cli import deploy
from lite3r_jax.deploy.manifest import read_deployment


def test_the_command_writes_the_model_and_prints_what_it_is(tiny_dir, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [str(tiny_dir), str(out), "--kind=fp8_weight_only", "--heads=", "--license=MIT"]
    assert command.main(arguments) == 0
    report = capsys.readouterr().out
    manifest = read_deployment(out)
    assert manifest.kind == "fp8_weight_only" and manifest.heads == ()
    assert "MIT (who exported it)" in report and "fp8_weight_only, rules 'default'" in report
    for name, record in manifest.files.items():
        assert name in report and record.sha256 in report


@pytest.mark.parametrize("arguments,why", [
    (["none", "out"], "none: no such directory"),
    (["none", "out", "--kind=int8"], "invalid choice: 'int8'"),
    (["none", "out", "--rules=paper_w4a8"], "invalid choice: 'paper_w4a8'"),
    (["none"], "arguments are required: out"),
    (["none", "out", "--artifact=2x28"], "expected VIEWSxHEIGHTxWIDTH as 8x294x518, got '2x28'"),
    (["none", "out", "--artifact=1x28x28", "--artifact=1x28x28"], "each once"),
    (["none", "out", "--platform=cuda"], "--platform: is for --artifact"),
    (["none", "out", "--student=nobody"], "nobody/manifest.json: missing, so this is no student"),
])  # fmt: skip
def test_bad_input_is_one_line_and_nothing_is_written(
    arguments, why, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert command.main(arguments) == 2
    shown, error = capsys.readouterr()
    assert shown == "" and error.count("\n") == 1 and why in error
    assert not list(tmp_path.iterdir())


def test_programs_are_for_this_machine_or_for_those_that_are_named():
    parse = deploy.parser().parse_args
    here = "cuda" if jax.default_backend() == "gpu" else "cpu"
    [program] = deploy.programs(parse(["w", "o", "--artifact=2x294x518"]))
    assert program.file_name == f"forward-{here}-2x294x518.jax" and program.dtype == "bfloat16"
    both = parse(["w", "o", "--artifact=2x28x28", "--platform=cpu", "--platform=cuda"])
    assert [p.platform for p in deploy.programs(both)] == ["cpu", "cuda"]
