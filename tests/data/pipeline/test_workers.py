"""Batches from worker processes: the same ones, whatever the workers do."""

import json
import os
import signal
import subprocess
import sys
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import pytest

from lite3r_jax.data.augment import Augmentation
from lite3r_jax.data.blendedmvs import BlendedMVS
from lite3r_jax.data.pipeline import Bucket, Part, Pipeline, PipelineOptions
from lite3r_jax.errors import InputError
from tests.data.pipeline.numbers import Numbers
from tests.data.pipeline.test_batches import assert_equal
from tests.data.world import views, write_blendedmvs

BUCKETS = (Bucket(1, 3, 40, 56, weight=2), Bucket(3, 2, 56, 40))
CHANGES = Augmentation(brightness=0.4, hue=0.1, blur=0.3, crop=0.8, mirror=0.5, shuffle=True)
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """Three scenes, one frame of which cannot be read."""
    root = tmp_path_factory.mktemp("blendedmvs")
    for scene in range(3):
        write_blendedmvs(root, f"scene{scene}", views(5, (48, 64), seed=scene))
    damaged = root / "scene1" / "blended_images" / "00000002.jpg"
    damaged.write_bytes(damaged.read_bytes()[:200])
    return root


def pipeline(root: Path, workers: int, *, augmentation=CHANGES, **options) -> Pipeline:
    bright = Numbers(levels=100, depth=False)  # values that are no multiples of 1/255
    parts = [Part(BlendedMVS(root), weight=2, strategy="pairs"), Part(bright)]
    return Pipeline(
        parts, PipelineOptions(BUCKETS, augmentation=augmentation, workers=workers, **options)
    )


@pytest.mark.slow
def test_two_workers_give_the_batches_and_the_state_of_one_process(room):
    as_read = Augmentation()
    alone = iter(pipeline(room, 0, augmentation=as_read))
    for _ in range(3):
        next(alone)
    with iter(pipeline(room, 2, augmentation=as_read, prefetch=1)) as batches:
        batches.set_state(alone.get_state())
        for _ in range(7):
            assert_equal(next(batches), next(alone))
        assert batches.get_state() == alone.get_state()
        assert len(active_children()) == 2
    assert not active_children()
    assert len(alone.faults) == 1


def test_a_killed_worker_is_an_error_and_not_a_wait():
    one = Pipeline([Part(Numbers())], PipelineOptions(BUCKETS, workers=1, prefetch=1))
    batches = iter(one)
    next(batches)
    (worker,) = active_children()
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="exit code -9") as caught:
        for _ in range(10):
            next(batches)
    assert f"batch {batches.step} of the data pipeline" in "".join(caught.value.__notes__)
    assert not active_children()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_the_order_is_the_same_for_any_number_of_workers(room, workers):
    alone = pipeline(room, 0)
    with iter(pipeline(room, workers)) as batches:
        for step in range(20):
            assert_equal(next(batches), alone.batch(step))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_after_restoring_are_the_same(room, workers):
    alone = pipeline(room, 0)
    straight = iter(alone)
    for step in range(20):
        if workers == 0 or step in (0, 1, 2, 11):  # starting workers takes seconds
            with iter(pipeline(room, workers)) as batches:
                batches.set_state(straight.get_state())
                for further in range(4):
                    assert_equal(next(batches), alone.batch(step + further))
        next(straight)


@pytest.mark.slow
def test_workers_can_go_on_after_one_was_killed(room):
    alone = pipeline(room, 0)
    with iter(pipeline(room, 2)) as batches:
        for _ in range(3):
            next(batches)
        os.kill(active_children()[1].pid, signal.SIGKILL)
        with pytest.raises(RuntimeError, match="exit code -9"):
            for _ in range(20):
                next(batches)
        for step in range(batches.step, batches.step + 3):
            assert_equal(next(batches), alone.batch(step))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_leaves_the_decision_to_the_first(room, number, monkeypatch):
    started = []

    def start(process, start=BaseProcess.start):
        start(process)
        os.kill(process.pid, number)  # at once: it does not run any code of ours yet
        started.append(process.pid)

    monkeypatch.setattr(BaseProcess, "start", start)
    alone = pipeline(room, 0)
    with iter(pipeline(room, 2)) as batches:
        for step in range(20):
            assert_equal(next(batches), alone.batch(step))
            if step in (0, 5):
                for worker in active_children():
                    os.kill(worker.pid, number)
        assert len(started) == 2
    assert not active_children()


@pytest.mark.slow
def test_the_first_process_still_gets_signals_that_come_while_workers_start(monkeypatch):
    got = []
    old = signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))

    def start(process, start=BaseProcess.start):
        start(process)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(BaseProcess, "start", start)
    try:
        with iter(Pipeline([Part(Numbers())], PipelineOptions(BUCKETS, workers=1))) as batches:
            next(batches)
            assert got == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, old)


@pytest.mark.slow
def test_a_worker_that_ends_itself_is_an_error():
    one = Pipeline([Part(Numbers(deadly=("3", 3)))], PipelineOptions(BUCKETS, workers=2))
    with iter(one) as batches, pytest.raises(RuntimeError, match="exit code 7"):
        for _ in range(100):
            next(batches)


@pytest.mark.slow
def test_faults_met_by_workers_are_counted_and_stop_the_run_at_the_same_step():
    broken = [("0", 0), ("1", 3), ("4", 5)]
    stopped = []
    for workers in (0, 2):
        options = PipelineOptions(BUCKETS, workers=workers, fault_limit=2)
        with iter(Pipeline([Part(Numbers(broken=broken))], options)) as batches:
            with pytest.raises(InputError, match="the data has 3 faults") as caught:
                for _ in range(1000):
                    next(batches)
            stopped.append((str(caught.value), batches.step, dict(batches.faults)))
    assert stopped[0] == stopped[1]


PROGRAM = f"""
import sys
from multiprocessing import active_children
from multiprocessing.process import BaseProcess

sys.path.insert(0, {str(ROOT)!r})
from lite3r_jax.data.pipeline import Bucket, Part, Pipeline, PipelineOptions
from tests.data.pipeline.numbers import Numbers

if __name__ == "__main__":
    options = PipelineOptions((Bucket(2, 2, 64, 64),), workers=2)
    batches = iter(Pipeline([Part(Numbers())], options))
    kept = [next(batches) for _ in range(5)]
    print(*(child.pid for child in active_children()), flush=True)
"""


@pytest.mark.slow
def test_a_program_that_leaves_its_workers_running_ends_without_a_word(tmp_path):
    (tmp_path / "train.py").write_text(PROGRAM)
    run = subprocess.run(
        [sys.executable, tmp_path / "train.py"], capture_output=True, text=True, timeout=120
    )
    assert (run.returncode, run.stderr) == (0, "")
    workers = [int(pid) for pid in run.stdout.split()]
    assert len(workers) == 2 and not any(psutil.pid_exists(pid) for pid in workers)


@pytest.mark.slow
def test_workers_end_when_their_parent_is_killed(tmp_path):
    (tmp_path / "train.py").write_text(PROGRAM + "    for batch in batches: pass\n")
    with subprocess.Popen(
        [sys.executable, tmp_path / "train.py"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        workers = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        parent.kill()
    assert len(workers) == 2
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive


@pytest.mark.slow
def test_orbax_saves_and_restores_an_iterator(room, tmp_path):
    import grain
    import orbax.checkpoint as ocp

    straight = iter(pipeline(room, 0))
    for _ in range(5):
        next(straight)
    with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
        save = grain.checkpoint.CheckpointSave(straight)
        manager.save(5, args=ocp.args.Composite(data=save))
        manager.wait_until_finished()
        for workers in (0, 2):
            with iter(pipeline(room, workers)) as restored:
                restore = grain.checkpoint.CheckpointRestore(restored)
                manager.restore(5, args=ocp.args.Composite(data=restore))
                assert json.loads(restored.get_state())["step"] == 5
                for step in (5, 6):
                    assert_equal(next(restored), pipeline(room, 0).batch(step))
