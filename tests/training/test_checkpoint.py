"""Checkpoints: what comes back is what was saved, or nothing does."""

import random
import shutil
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lite3r_jax.errors import InputError
from lite3r_jax.training.checkpoint import CheckpointOptions, Checkpoints, read_arrays
from lite3r_jax.training.manifest import damage

ROOT = Path(__file__).parents[2]


def tree(step=0.0):
    params = {"a/kernel": jnp.arange(12.0).reshape(3, 4) + step, "b": jnp.full(2, step, "bfloat16")}
    return {"params": params, "count": jnp.int32(step), "key": jnp.uint32([7, 2**32 - 1])}


def shapes(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def save(folder, steps, best=(), **options):
    with Checkpoints(folder, CheckpointOptions(**options)) as checkpoints:
        for step in steps:
            checkpoints.save(step, tree(step), {"note": f"step {step}"}, best=step in best)


def restore(folder):
    with Checkpoints(folder) as checkpoints:
        return checkpoints.restore(shapes(tree()))


def test_what_is_saved_along_may_change_while_it_is_written(tmp_path, monkeypatch):
    from orbax import checkpoint as orbax

    writing = []

    def later(item, save=orbax.args.JsonSave):
        writing.append(item)  # orbax turns it into text in a thread, at some time
        return save(item)

    monkeypatch.setattr(orbax.args, "JsonSave", later)
    extra = {"note": "step 1", "sums": {"loss": [1.0, 1]}}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tree(1), extra)
        extra["sums"]["loss"][0] = 2.0
        extra["sums"]["more"] = [3.0, 1]
        assert writing[0]["sums"] == {"loss": [1.0, 1]}
    assert restore(tmp_path).extra["sums"] == {"loss": [1.0, 1]}


def assert_is(restored, step):
    assert (restored.step, restored.extra["note"]) == (step, f"step {step}")
    jax.tree.map(np.testing.assert_array_equal, restored.state, tree(step))
    assert [x.dtype for x in jax.tree.leaves(restored.state)] == [
        x.dtype for x in jax.tree.leaves(tree())
    ]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A folder with intact checkpoints of steps 10 and 20. Not to be changed."""
    folder = tmp_path_factory.mktemp("two")
    save(folder, [10, 20])
    return folder


@pytest.fixture
def copy(two, tmp_path):
    return Path(shutil.copytree(two, tmp_path / "copy"))


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_the_newest_comes_back_bit_for_bit(two):
    assert_is(restore(two), 20)
    assert restore(two).problems == ()


def test_without_checkpoints_there_is_nothing(tmp_path):
    assert restore(tmp_path) is None


def test_a_save_does_not_see_what_happens_to_its_arrays_afterwards(tmp_path):
    change = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    state = change({"params": jnp.arange(200_000.0), "key": jnp.zeros(2)})
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2, 3):
            want = np.array(state["params"])
            checkpoints.save(step, state, {})
            for _ in range(5):
                state = change(state)
            checkpoints.wait()
            restored = checkpoints.restore(shapes(state))
            np.testing.assert_array_equal(restored.state["params"], want)


def test_newest_every_nth_and_best_are_kept(tmp_path):
    save(tmp_path, range(1, 12), best={2, 7}, keep=2, keep_every=4)
    assert Checkpoints(tmp_path).steps() == [4, 7, 8, 10, 11]


def test_parameters_are_read_without_a_model(two):
    arrays = read_arrays(two)
    assert set(arrays) == {"a/kernel", "b"}
    np.testing.assert_array_equal(arrays["a/kernel"], tree(20)["params"]["a/kernel"])
    np.testing.assert_array_equal(read_arrays(two, 10)["b"], tree(10)["params"]["b"])
    with pytest.raises(InputError, match="no checkpoint of step 15; there are 10, 20"):
        read_arrays(two, 15)


def test_damage_is_told_and_the_step_before_is_taken(copy):
    victim = max(files(copy / "checkpoints/20/arrays"), key=lambda path: path.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 4
    victim.write_bytes(data)
    with pytest.raises(InputError, match=r"20: damaged \(.* differs from its SHA-256\)"):
        read_arrays(copy)
    restored = restore(copy)
    assert_is(restored, 10)
    (problem,) = restored.problems
    assert problem.startswith("checkpoint of step 20 is damaged: ")
    assert victim.name in problem
    # Out of the way of its successor, not deleted.
    assert (copy / "damaged" / "20-0").is_dir()
    save(copy, [20])
    assert_is(restore(copy), 20)


def test_when_nothing_is_intact_the_run_does_not_start_anew_in_silence(copy):
    for step in (10, 20):
        files(copy / f"checkpoints/{step}")[0].unlink()
    with pytest.raises(InputError, match="no checkpoint is intact"):
        restore(copy)


def test_what_a_killed_save_left_is_no_checkpoint_and_is_cleared_away(copy):
    left = copy / "checkpoints" / "30.orbax-checkpoint-tmp"
    shutil.copytree(copy / "checkpoints" / "20", left)
    unsealed = copy / "checkpoints" / "25"  # killed just before its manifest
    shutil.copytree(copy / "checkpoints" / "20", unsealed)
    (unsealed / "manifest.json").unlink()
    restored = restore(copy)
    assert_is(restored, 20)
    assert "it has no manifest.json, so it was never completed" in restored.problems[0]
    assert not left.exists()


@pytest.mark.parametrize("cases", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_every_flipped_bit_truncation_and_deletion_is_found(copy, cases):
    rng, counts = random.Random(cases), Counter()
    folder = copy / "checkpoints" / "20"
    for _ in range(cases):
        path = rng.choice(files(folder))
        was = path.read_bytes()
        kind = rng.choice(["flip"] * 6 + ["cut", "delete", "grow"] if was else ["delete", "grow"])
        counts[kind] += 1
        if kind == "flip":
            place, bit = rng.randrange(len(was)), 1 << rng.randrange(8)
            path.write_bytes(was[:place] + bytes([was[place] ^ bit]) + was[place + 1 :])
        elif kind == "cut":
            path.write_bytes(was[: rng.randrange(len(was))])
        elif kind == "grow":
            path.write_bytes(was + b"\0")
        else:
            path.unlink()
        assert damage(folder) is not None, f"{kind} {path.name}"
        path.write_bytes(was)
        assert damage(folder) is None
    assert counts["flip"] > cases / 2 and min(counts.values()) > cases / 20
    (folder / "arrays" / "new").write_bytes(b"")
    assert damage(folder) == "arrays/new does not belong to it"


def test_checkpoints_of_another_model_are_refused_by_name(two):
    other = shapes(tree())
    other["params"]["c"] = other["params"].pop("b")
    other["params"]["a/kernel"] = jax.ShapeDtypeStruct((4, 4), jnp.float32)
    message = r"of another model or optimizer, 3 arrays differ, such as params/a/kernel: .*\(3, 4\)"
    with Checkpoints(two) as checkpoints, pytest.raises(InputError, match=message):
        checkpoints.restore(other)


@pytest.mark.parametrize("options", [{"every": 0}, {"keep": 1}, {"keep_every": -1}])
def test_options_that_would_lose_work_are_refused(options):
    with pytest.raises(InputError, match="checkpoint: expected"):
        CheckpointOptions(**options)


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "run").write_text("a file")
    with (
        pytest.raises(InputError, match="the checkpoint of step 1 cannot be written"),
        Checkpoints(tmp_path / "run") as checkpoints,
    ):
        checkpoints.save(1, tree(1), {})


FULL_DISK = textwrap.dedent("""
    import resource, signal, sys
    from pathlib import Path
    import jax.numpy as jnp
    from lite3r_jax.errors import InputError
    from lite3r_jax.training.checkpoint import Checkpoints

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit then fails: EFBIG
    big = {"params": jnp.arange(300_000.0) ** 1.5}
    with Checkpoints(Path(sys.argv[1])) as checkpoints:
        checkpoints.save(1, big, {})
        checkpoints.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            checkpoints.save(2, big, {})
            checkpoints.wait()
        except InputError as error:
            print(error)
""")


@pytest.mark.slow
def test_a_disk_that_fills_up_leaves_the_last_good_step(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK, tmp_path],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "the checkpoint of step 2 cannot be written" in run.stdout
    assert "step 1 is the last there is" in run.stdout
    want = np.asarray(jnp.arange(300_000.0) ** 1.5)
    with Checkpoints(tmp_path) as checkpoints:
        like = {"params": jnp.zeros(300_000)}
        restored = checkpoints.restore(shapes(like))
    assert restored.step == 1
    np.testing.assert_array_equal(restored.state["params"], want)
