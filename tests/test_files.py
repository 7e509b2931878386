"""Files and folders that appear when they are complete."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from lite3r_jax.errors import InputError
from lite3r_jax.files import staged


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "deep" / "file.bin"
    with staged(path) as partial:
        partial.write_bytes(b"half")
        assert not path.exists()
        partial.write_bytes(b"whole")
    assert path.read_bytes() == b"whole"
    assert listing(path.parent) == ["file.bin"]


def test_a_folder_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "folder"
    with staged(path) as partial:
        partial.mkdir()
        (partial / "a").write_bytes(b"a")
        assert not path.exists()
    assert listing(path) == ["a"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("folder", [False, True])
def test_a_failure_leaves_what_was_there(tmp_path, error, folder):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with pytest.raises(error), staged(path, overwrite=True) as partial:
        if folder:
            partial.mkdir()
            (partial / "a").write_bytes(b"new")
        else:
            partial.write_bytes(b"new")
        raise error
    assert path.read_bytes() == b"old"
    assert listing(tmp_path) == ["x"]


def test_an_operating_system_error_names_the_final_file(tmp_path):
    path = tmp_path / "x"
    with pytest.raises(InputError, match=r"/x: cannot be written \(No space left"), staged(path):
        raise OSError(28, "No space left on device")


def test_a_parent_that_is_a_file_is_named(tmp_path):
    (tmp_path / "x").write_bytes(b"old")
    with pytest.raises(InputError, match=r"/x/y: cannot be written"), staged(tmp_path / "x" / "y"):
        pytest.fail("the block must not run")


@pytest.mark.parametrize("new", ["file", "folder"])
@pytest.mark.parametrize("old", ["file", "folder", "link"])
def test_replacing_needs_permission(tmp_path, old, new):
    path = tmp_path / "out" / "x"
    path.parent.mkdir()
    if old == "folder":
        path.mkdir()
        (path / "keep").write_bytes(b"old")
    elif old == "link":
        path.symlink_to("nowhere")
    else:
        path.write_bytes(b"old")
    with pytest.raises(InputError, match="exists already"), staged(path):
        pytest.fail("the block must not run")

    with staged(path, overwrite=True) as partial:
        if new == "folder":
            partial.mkdir()
            (partial / "a").write_bytes(b"new")
        else:
            partial.write_bytes(b"new")
    assert listing(path.parent) == ["x"]
    assert not path.is_symlink()
    if new == "folder":
        assert listing(path) == ["a"]
    else:
        assert path.read_bytes() == b"new"


def test_what_came_meanwhile_is_not_replaced(tmp_path):
    path = tmp_path / "x"
    with pytest.raises(InputError, match="wrote it meanwhile"), staged(path) as partial:
        partial.write_bytes(b"ours")
        path.write_bytes(b"theirs")
    assert path.read_bytes() == b"theirs"
    assert listing(tmp_path) == ["x"]


def test_a_killed_process_leaves_nothing_under_the_final_name(tmp_path):
    program = textwrap.dedent("""
        import sys, time
        from lite3r_jax.files import staged
        with staged(sys.argv[1], overwrite=True) as partial:
            partial.write_bytes(b"half")
            print("writing", flush=True)
            time.sleep(60)
    """)
    path = tmp_path / "x"
    path.write_bytes(b"old")
    command = [sys.executable, "-c", program, str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1])
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"writing\n"
        os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert path.read_bytes() == b"old"
