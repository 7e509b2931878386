"""Freed memory: whether a process keeps it, counted in pages that the system has to bring."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource
import sys
from lite3r_jax.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
import jax
import jax.numpy as jnp
step = jax.jit(lambda x: 2 * x[::-1])
x = jnp.ones((1 << 24,))  # 64 MiB: more than glibc ever keeps by itself
for _ in range(10):
    step(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_steps_after_the_first_ones_need_no_new_pages():
    def pages(what: str) -> int:
        run = [sys.executable, "-c", PROGRAM, what]
        return int(subprocess.run(run, capture_output=True, text=True, check=True).stdout)

    assert pages("keep") < pages("as it is") / 2


ORDER = """
import os
import sys
from lite3r_jax.cli import by_config
from lite3r_jax.runs import evaluate, train

def threads():
    return {open(f"/proc/self/task/{task}/comm").read() for task in os.listdir("/proc/self/task")}

def called():
    sys.exit("early" if not any("XLA" in name for name in threads()) else "late")

evaluate.keep_freed_memory = train.keep_freed_memory = called
import jax
if sys.argv[1] == "late":
    jax.devices()
by_config.main(sys.argv[2:])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_memory_is_kept_before_jax_has_threads(mode, tmp_path):
    def when(order: str) -> str:
        settings = ["--config=configs/vggt_tiny.py", f"--mode={mode}"]
        run = [sys.executable, "-c", ORDER, order, *settings, f"--config.output={tmp_path}"]
        return subprocess.run(run, capture_output=True, text=True).stderr.split()[-1]

    assert when("as it is") == "early"
    assert when("late") == "late"


PROGRAMS = """
import runpy
import sys
from lite3r_jax import allocator

def called():
    sys.exit("late" if "numpy" in sys.modules else "early")

allocator.share_one_heap = called
runpy.run_module(sys.argv[1], run_name="__main__")
"""


@pytest.mark.parametrize("program", ["lite3r_jax", "lite3r_jax.main"])
def test_programs_share_one_heap_before_numpy_is_imported(program):
    run = [sys.executable, "-c", PROGRAMS, program]
    assert subprocess.run(run, capture_output=True, text=True).stderr.split() == ["early"]


BLOCKS = """
import psutil
from lite3r_jax.allocator import give_back_freed_memory
blocks = [b"x" * 60_000 for _ in range(2000)]
last = blocks[-1]  # at the end of the heap, where glibc by itself gives back what is freed
del blocks
before = psutil.Process().memory_info().rss
assert give_back_freed_memory()
print(before - psutil.Process().memory_info().rss)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_what_was_freed_is_given_back():
    run = [sys.executable, "-c", BLOCKS]
    given = int(subprocess.run(run, capture_output=True, text=True, check=True).stdout)
    assert given > 0.9 * 2000 * 60_000
