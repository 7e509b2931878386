"""The TPU kernels in Pallas' TPU interpreter, in a process of its own.

What the interpreter does are callbacks, which wait for copies of their arguments and for programs
that they start. Where jax has as many threads as there are cores, and that is one or two, these may
all be in callbacks, and the wait has no end. How many it has is settled when a process first asks
for a device.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "speed", ["not slow", pytest.param("slow", marks=pytest.mark.slow)], ids=lambda x: x
)
def test_kernels_equal_their_definitions_in_the_interpreter(speed):
    run = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *("-m", f"tpu_interpret and {speed}", "tests/tpu_interpret"),
        ],
        cwd=ROOT,
        env=os.environ | {"JAX_CPU_ENABLE_ASYNC_DISPATCH": "0", "PJRT_NPROC": "16"},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-1000:]
    assert " passed" in run.stdout
