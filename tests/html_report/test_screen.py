"""Markdown within the width of a screen."""

from hypothesis import given
from hypothesis import strategies as st

from lite3r_jax.html_report.screen import on_screen


def table(rows):
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def test_a_wide_table_becomes_several_with_its_first_column():
    rows = [["row", "AbsRel", "AUC"], ["dense", "0.1 [0.05, 0.15]", "0.9"], ["sla", "0.2", "0.8"]]
    assert on_screen(table(rows), 26) == (
        "row    AbsRel\n-----  ----------------\ndense  0.1 [0.05, 0.15]\nsla    0.2\n\n"
        "row    AUC\n-----  ---\ndense  0.9\nsla    0.8"
    )
    assert len(on_screen(table(rows), 100).splitlines()) == 4


def test_text_is_wrapped_and_lists_are_indented():
    shown = on_screen("## Title\n\n- one two three four\n", 12)
    assert shown == "## Title\n\n- one two\n  three four"


CELLS = st.text("abc019[] .,", min_size=1, max_size=20).map(str.strip).filter(bool)


@given(st.integers(2, 8).flatmap(lambda n: st.lists(st.lists(CELLS, min_size=n, max_size=n),
                                                     min_size=2, max_size=5)))  # fmt: skip
def test_every_cell_is_shown_within_the_width(rows):
    lines = on_screen(table(rows), 50).splitlines()
    assert max(map(len, lines)) <= 50
    shown = "\n".join(lines)
    assert all(cell in shown for row in rows for cell in row)
