"""pair.txt: partners and scores, or a line that says what is wrong."""

import re

import pytest

from lite3r_jax.data.pair_file import read_pairs, write_pairs
from lite3r_jax.errors import InputError
from tests.data.mutate import COUNTS, check_clear, mutants
from tests.data.world import pair_text

TEXT = pair_text(5, partners=3)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "pair.txt"


def test_partners_and_scores_are_read_in_order(path):
    path.write_text("3\n0\n2 2 10.5 1 3\n1\n1 0 3.0 \n2\n0\n")
    assert read_pairs(path) == {0: {2: 10.5, 1: 3.0}, 1: {0: 3.0}, 2: {}}
    assert list(read_pairs(path)[0]) == [2, 1]


@pytest.mark.parametrize(
    "text,message",
    [
        ("", "line 1: expected a whole number, got ''"),
        ("0\n", "line 1: 0 views need 1 lines"),
        ("two\n0\n0\n1\n0\n", "line 1: expected a whole number, got 'two'"),
        ("3\n0\n1 1 2\n1\n1 0 2\n", "line 1: 3 views need 7 lines, got 5"),
        ("2\n0\n1 1 2\n0\n1 1 2\n", "line 4: view 0 comes twice"),
        ("2\n0\n2 1 2\n1\n1 0 2\n", "line 3: expected the number of partners"),
        ("2\n0\n\n1\n1 0 2\n", "line 3: expected the number of partners"),
        ("2\n0\n1 0 2\n1\n1 0 2\n", "line 3: expected partners of view 0 that are different"),
        ("2\n0\n2 1 2 1 3\n1\n0\n", "line 3: expected partners of view 0 that are different"),
        ("2\n0\n1 1 -2\n1\n0\n", "line 3: expected scores of 0 or more"),
        ("2\n0\n1 1 nan\n1\n0\n", "line 3: expected a finite number, got 'nan'"),
        ("2\n0\n1 1.0 2\n1\n0\n", "line 3: expected a whole number, got '1.0'"),
        ("2\n0\n0\n1\n1 7 2\n", "line 5: expected partners among the views of this file, got 7"),
    ],
)
def test_wrong_lines_are_named(path, text, message):
    path.write_text(text)
    with pytest.raises(InputError, match=re.escape(message)) as error:
        read_pairs(path)
    check_clear(error.value, path)


@pytest.mark.parametrize("count", COUNTS)
def test_no_damaged_pairs_are_accepted(path, count):
    taken = 0
    for data in mutants(path, TEXT.encode(), count, seed=3):
        try:
            pairs = read_pairs(path)
        except InputError as error:
            check_clear(error, path)
            continue
        taken += 1
        first, *lines = data.decode("ascii").rstrip().split("\n")
        assert len(pairs) == int(first) == len(lines) / 2
        for view, line in zip(lines[::2], lines[1::2], strict=True):
            k, *words = line.split()
            read = pairs[int(view)]
            assert len(read) == int(k) == len(words) / 2
            assert list(read.items()) == [
                (int(a), float(b)) for a, b in zip(words[::2], words[1::2], strict=True)
            ]
            assert int(view) not in read and read.keys() <= pairs.keys()
            assert all(0 <= score < 1e10 for score in read.values())
    assert 0 < taken < count / 2


def test_the_best_partners_are_written_and_read(path):
    pairs = {0: {1: 0.25, 2: 0.5, 7: 0.125}, 1: {0: 0.25}, 2: {}, 7: {0: 0.0, 1: 1.0, 2: 1.0}}
    write_pairs(path, pairs, partners=2)
    read = read_pairs(path)
    assert read == {0: {2: 0.5, 1: 0.25}, 1: {0: 0.25}, 2: {}, 7: {1: 1.0, 2: 1.0}}
    assert list(read[0]) == [2, 1]
