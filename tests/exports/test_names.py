"""Names of files after the names of views."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lite3r_jax.exports.names import with_suffixes


@pytest.mark.parametrize(
    "names,expected",
    [
        (["a.jpg", "b/a.jpg"], ["a.png", "b/a.png"]),
        (["a.jpg", "a.png"], ["a.jpg.png", "a.png"]),
        (["a.jpg", "A.png"], ["a.jpg.png", "A.png"]),
        (["a.jpg", "a.png", "a.jpg.png"], ["a.jpg.png", "a.png.png", "a.jpg.png.png"]),
        (["frame.0001", "frame.0002"], ["frame.0001.png", "frame.0002.png"]),
        (["plain", ".hidden"], ["plain.png", ".hidden.png"]),
    ],
)
def test_suffix_is_replaced_or_kept_inside(names, expected):
    assert with_suffixes(names, [".png"] * len(names)) == tuple(expected)


part = st.text(string.ascii_lowercase[:2] + ".A", min_size=1, max_size=4).filter(
    lambda x: x not in (".", "..")
)
name = st.lists(part, min_size=1, max_size=2).map("/".join)
suffix = st.sampled_from([".png", ".jpg", ".jpeg"])


@given(st.lists(st.tuples(name, suffix), min_size=1, max_size=8, unique_by=lambda x: x[0].lower()))
def test_names_stay_different_and_end_with_their_suffix(pairs):
    names, suffixes = zip(*pairs, strict=True)
    result = with_suffixes(names, suffixes)
    assert len({x.casefold() for x in result}) == len(names)
    assert all(x.endswith(end) for x, end in zip(result, suffixes, strict=True))
    for before, after in zip(names, result, strict=True):
        assert after.split("/")[:-1] == before.split("/")[:-1]
