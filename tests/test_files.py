"""Files and folders that appear when they are complete."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from lite3r_jax.errors import InputError
from lite3r_jax.files import atomic_write, user_cache


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "deep" / "file.bin"
    with atomic_write(path) as partial:
        partial.write_bytes(b"half")
        assert not path.exists()
        partial.write_bytes(b"whole")
    assert path.read_bytes() == b"whole"
    assert listing(path.parent) == ["file.bin"]


def test_a_folder_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "folder"
    with atomic_write(path) as partial:
        partial.mkdir()
        (partial / "a").write_bytes(b"a")
        assert not path.exists()
    assert listing(path) == ["a"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("folder", [False, True])
def test_a_failure_leaves_what_was_there(tmp_path, error, folder):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with pytest.raises(error), atomic_write(path, overwrite=True) as partial:
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
    with (
        pytest.raises(InputError, match=r"/x: cannot be written \(No space left"),
        atomic_write(path),
    ):
        raise OSError(28, "No space left on device")


def test_a_parent_that_is_a_file_is_named(tmp_path):
    (tmp_path / "x").write_bytes(b"old")
    with (
        pytest.raises(InputError, match=r"/x/y: cannot be written"),
        atomic_write(tmp_path / "x" / "y"),
    ):
        pytest.fail("the block must not run")


def test_a_name_that_is_too_long_is_refused_before_the_work(tmp_path):
    for length in (240, 300):  # the temporary name is longer
        path = tmp_path / ("n" * length)
        with pytest.raises(InputError, match="too long"), atomic_write(path):
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
    with pytest.raises(InputError, match="exists already"), atomic_write(path):
        pytest.fail("the block must not run")

    with atomic_write(path, overwrite=True) as partial:
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
    with pytest.raises(InputError, match="wrote it meanwhile"), atomic_write(path) as partial:
        partial.write_bytes(b"ours")
        path.write_bytes(b"theirs")
    assert path.read_bytes() == b"theirs"
    assert listing(tmp_path) == ["x"]


KILLED_WHILE_REPLACING = """
import os, signal, sys
from pathlib import Path
from lite3r_jax import files

if sys.argv[3] == "without exchange":
    files._exchange = lambda one, other: False
calls, names = 0, {"rename": os, "replace": os, "_exchange": files, "_remove": files}
for name, place in names.items():
    def counted(*args, call=getattr(place, name)):
        global calls
        calls += 1
        if calls == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args)
    setattr(place, name, counted)
with files.atomic_write(sys.argv[1], overwrite=True) as partial:
    partial.mkdir()
    (partial / "new").touch()
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", ["exchange", "without exchange"])
def test_a_folder_survives_a_kill_at_every_step_of_its_replacement(tmp_path, way):
    """And what the killed process left is gone after the next write."""
    for step in range(1, 8):
        root = tmp_path / str(step)
        path = root / "x"
        path.mkdir(parents=True)
        (path / "old").touch()
        command = [sys.executable, "-c", KILLED_WHILE_REPLACING, str(path), str(step), way]
        code = subprocess.run(command, cwd=Path(__file__).parents[1]).returncode
        if way == "exchange":  # readers find one or the other at any time
            assert listing(path) in (["old"], ["new"]), step
        with pytest.raises(InputError, match="exists already"), atomic_write(path):
            pytest.fail("the block must not run")
        assert listing(path) in (["old"], ["new"]), step
        assert listing(root) == ["x"], step
        if code == 0:
            assert listing(path) == ["new"] and step > 2
            return
    pytest.fail("it was killed at every step: the steps are not all counted")


def test_what_a_living_process_or_another_machine_writes_stays(tmp_path):
    theirs = [tmp_path / ".x.partial-00000000-1-abcd", tmp_path / ".x.partial-1234"]
    for path in theirs:
        path.touch()
    with atomic_write(tmp_path / "x") as outer:
        outer.write_bytes(b"outer")
        with atomic_write(tmp_path / "x", overwrite=True) as inner:
            inner.write_bytes(b"inner")
        assert outer.exists()
        (tmp_path / "x").unlink()
    assert all(path.exists() for path in theirs)


def test_a_killed_process_leaves_nothing_under_the_final_name(tmp_path):
    program = textwrap.dedent("""
        import sys, time
        from lite3r_jax.files import atomic_write
        with atomic_write(sys.argv[1], overwrite=True) as partial:
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


def test_the_cache_is_in_the_home_directory(monkeypatch):
    for platform, tail in [
        ("linux", ".cache/lite3r_jax"),
        ("darwin", "Library/Caches/lite3r_jax"),
        ("win32", "AppData/Local/lite3r_jax/Cache"),
    ]:
        monkeypatch.setattr(sys, "platform", platform)
        assert user_cache() == Path.home() / tail
