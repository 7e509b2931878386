"""Runs on long videos that are killed lose the chunk that they were at, and nothing else."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_kills_lose_nothing_but_the_running_chunk(tmp_path):
    command = [sys.executable, "-m", "tests.long_video.kill", str(tmp_path), "12"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    head, *rows = map(json.loads, done.stdout.splitlines())
    assert head["chunks"] == 20 and head["changes"] > 100 and len(rows) == 12
    for row in rows:
        assert row["asked"] - row["kept"] in (0, 1), row
        assert row["asked_again"] == 20 - row["kept"], row
        assert row["same"] and not row["left"], row
    assert len({row["kept"] for row in rows}) > 6  # all along the video
