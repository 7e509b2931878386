"""The benchmark of attention runs, small and on a CPU."""

import re

from tools.benchmark import attention

SMALL = ["--implementation", "blocked", "--dense", "blocked"]
SMALL += ["--views", "1", "--grid", "3", "4", "--keep", "0.5"]


def test_the_plain_program_measures_both(capsys):
    attention.main([*SMALL, "--passes", "forward"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(re.search(r"temporary \d+ MiB, .* x dense", line) for line in lines[1:])
