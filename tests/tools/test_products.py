"""`tools.benchmark.products`, as it is documented."""

import re
import subprocess
import sys

import pytest

pytest.importorskip("torch")


@pytest.mark.slow
def test_products_are_timed_in_both_libraries():
    words = [sys.executable, "-m", "tools.benchmark.products", "--tokens", "64", "--runs", "1"]
    run = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    rows = re.findall(r"^\| (.+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", run.stdout, re.M)
    assert [name for name, *_ in rows] == [
        "queries, keys, values",
        "output of attention",
        "first of the MLP",
        "second of the MLP",
    ]
    for _, xla, pytorch, ratio in rows:
        assert float(pytorch) / float(xla) == pytest.approx(float(ratio), abs=0.02, rel=0.02)
