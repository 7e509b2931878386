"""The command line: conversion and its report, and one line for every kind of bad input."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tools.convert_torch_weights.__main__ as command
from lite3r_jax.cli import convert
from lite3r_jax.errors import InputError
from lite3r_jax.weights.manifest import read_manifest

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "vggt"
SOURCE = GOLDEN / "model.safetensors"


def failing(capsys, *arguments) -> str:
    """The one line on stderr of a run that must fail."""
    assert command.main([str(a) for a in arguments]) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.startswith("error: ")
    assert error.endswith("\n") and error.count("\n") == 1
    return error


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    """The golden config without its parameter count, which costs time to check."""
    settings = json.loads((GOLDEN / "config.json").read_text())
    del settings["param_count"]
    path = tmp_path_factory.mktemp("config") / "config.json"
    path.write_text(json.dumps(settings))
    return path


@pytest.mark.slow
def test_there_and_back_through_pytorch_files(capsys, tmp_path, config):
    tensors = load_file(SOURCE)
    torch.save({"model": tensors, "step": 1}, tmp_path / "model.pt")
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    out, back = tmp_path / "out", tmp_path / "back.safetensors"
    arguments = ["vggt", tmp_path / "model.pt", out, "--config", config, "--key", "model"]
    assert command.main([str(a) for a in arguments]) == 0
    report = capsys.readouterr().out
    assert "aggregator.patch_embed.mask_token: used only" in report
    assert "cc-by-nc-4.0 (model card beside the checkpoint)" in report
    assert "F32 x 547" in report and "1,505,920" in report and "model.pt" in report
    for path in out.iterdir():
        assert path.name == "manifest.json" or path.name in report
    assert command.main(["export", str(out), str(back)]) == 0
    assert str(back) in capsys.readouterr().out
    exported = load_file(back)
    assert set(exported) == set(tensors)
    assert all(torch.equal(exported[name], tensor) for name, tensor in tensors.items())


def test_a_pytorch_file_of_pi3_becomes_the_same_files_as_its_safetensors(
    capsys, tmp_path, tiny_pi3_dir, tiny_pi3_json
):
    (tmp_path / "config.json").write_text(json.dumps(tiny_pi3_json))
    torch.save(load_file(GOLDEN.parent / "pi3" / "model.safetensors"), tmp_path / "model.pt")
    out = tmp_path / "out"
    arguments = ["pi3", tmp_path / "model.pt", out, "--config", tmp_path / "config.json"]
    assert command.main([str(a) for a in arguments]) == 0
    assert "F32 x 304" in capsys.readouterr().out
    files, wanted = (read_manifest(folder).files for folder in (out, tiny_pi3_dir))
    assert files == {n: file for n, file in wanted.items() if n != "source_header.json"}
    assert {"trunk.safetensors", "camera_head.safetensors", "depth_head.safetensors"} <= set(files)
    again = failing(capsys, *arguments)
    assert "out: " in again and "--overwrite" in again


def test_a_left_over_of_an_interrupted_run_is_pointed_out(capsys, tmp_path, config, monkeypatch):
    class Report:
        def report(self):
            return "report"

    monkeypatch.setattr(command, "convert", lambda *a, **k: Report())
    (tmp_path / ".out.partial-1234").mkdir()
    assert command.main(["vggt", str(SOURCE), str(tmp_path / "out"), "--config", str(config)]) == 0
    assert "partial-1234 was left by an interrupted run" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, why",
    [
        ([], "arguments are required: command"),
        (["vggt"], "arguments are required: source, out"),
        (["nerf", "a", "b"], "invalid choice: 'nerf'"),
        (["vggt", "a", "b", "--what"], "unrecognized arguments: --what"),
        (["vggt", "no.safetensors", "b"], "no.safetensors: cannot be read (No such file"),
        (["vggt", "no.pt", "b"], "no.pt: no such file"),
        (["vggt", __file__, "b"], "expected .safetensors, .safetensors.index.json, .pt"),
        (["vggt", SOURCE, "b", "--key", "x"], "--key is only for .pt"),
        (["vggt", SOURCE, "b", "--config", "no.json"], "no.json: cannot be read"),
        (["vggt", SOURCE, "b", "--config", __file__], "not valid JSON"),
        (["vggt", SOURCE, "b", "--heads", "camera,wings"], "heads: wings is not known"),
        (["vggt", SOURCE, "b", "--heads", "camera"], "has the heads depth, point, track"),
        (["vggt", SOURCE, ROOT], "exists; choose another directory or add --overwrite"),
        (["vggt", SOURCE, ROOT, "--overwrite"], "--overwrite does not touch it"),
        (["vggt", SOURCE, SOURCE / "b"], "cannot be written"),
        (["export", "nothing", "b.safetensors"], "nothing: no such directory"),
    ],
)
def test_bad_input_is_one_line(capsys, tmp_path, monkeypatch, arguments, why):
    monkeypatch.chdir(tmp_path)
    assert why in failing(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_interrupting_is_no_traceback(capsys, monkeypatch, tmp_path):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(convert, "convert", interrupted)
    assert command.main(["vggt", str(SOURCE), str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err == "interrupted; no file is half-written\n"


def test_as_a_program_it_fails_with_one_line_and_no_traceback(tmp_path):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(SOURCE.read_bytes()[:100_000])
    run = subprocess.run(
        [sys.executable, "-m", "tools.convert_torch_weights", "vggt", path, tmp_path / "out"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2 and run.stdout == ""
    assert run.stderr.startswith(f"error: {path}: truncated") and run.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == [path]


def test_help_is_help(capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(["--help"])
    assert stop.value.code == 0
    assert "export" in capsys.readouterr().out


def test_errors_of_the_parser_are_input_errors():
    with pytest.raises(InputError):
        convert.parser().parse_args(["vggt"])
