"""Messages: one line, nothing in it that controls the screen."""

import subprocess
import sys
import unicodedata
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from lite3r_jax.errors import printable

ROOT = Path(__file__).parents[1]
CHARACTERS = st.characters(exclude_categories=[])  # surrogates too


@given(st.text(CHARACTERS))
def test_what_is_printed_is_one_line_without_controls_and_can_be_encoded(text):
    shown = printable(text)
    assert not {unicodedata.category(c) for c in shown} & {"Cc", "Cs", "Zl", "Zp"}
    assert len(shown.splitlines()) <= 1
    shown.encode()
    assert printable(shown) == shown


@given(st.text(st.characters(categories=["L", "N", "P", "S"])))
def test_what_can_be_read_stays(text):
    assert printable(text) == text


def test_lines_stay_where_they_are_meant():
    assert printable("a\nb\r\x1b[2J", lines=True) == "a\nb\\r\\x1b[2J"
    assert printable("a\nb") == "a\\nb" and printable("\u202etxt") == "\\u202etxt"


def test_an_error_is_one_line_on_a_screen_of_any_encoding():
    program = """
import sys
from lite3r_jax.cli.programs import exit_code
from lite3r_jax.errors import InputError
def run():
    print("caf\\u00e9 \\udcff")
    raise InputError("caf\\u00e9\\udcff\\n\\x1b[31m: cannot be read")
sys.exit(exit_code(run))
"""
    run = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT, env={"PYTHONIOENCODING": "ascii", "PATH": ""}, capture_output=True, timeout=300,
    )  # fmt: skip
    assert run.returncode == 2, run.stderr
    assert run.stdout == b"caf\\xe9 \\udcff\n"
    assert run.stderr == b"error: caf\\xe9\\udcff\\n\\x1b[31m: cannot be read\n"
