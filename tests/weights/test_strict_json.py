"""JSON from outside: nothing slips through that two parsers could read differently."""

import pytest

from lite3r_jax.errors import InputError
from lite3r_jax.weights import strict_json


@pytest.mark.parametrize(
    "text, why",
    [
        (b'{"a": 1, "a": 2}', "the key a is there twice"),
        (b'{"b": {"a": 1, "a": 1}}', "twice"),
        (b'{"a": NaN}', "NaN is no JSON number"),
        (b'{"a": -Infinity}', "-Infinity is no JSON number"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b'\xef\xbb\xbf{"a": 1}', "not valid JSON"),
        (b'{"a": 1} x', "not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"", "not valid JSON"),
        (b"[1]", "expected a JSON object, found list"),
    ],
)
def test_refused_with_the_file_named(tmp_path, text, why):
    path = tmp_path / "x.json"
    path.write_bytes(text)
    with pytest.raises(InputError) as error:
        strict_json.read_object(path)
    assert str(path) in str(error.value) and why in str(error.value)
    assert str(error.value).isprintable()


def test_too_large_or_not_there(tmp_path):
    path = tmp_path / "x.json"
    with pytest.raises(InputError, match="No such file"):
        strict_json.read_object(path)
    path.write_bytes(b'{"a": "' + b"x" * 100 + b'"}')
    with pytest.raises(InputError, match="larger than 50 bytes"):
        strict_json.read_object(path, limit=50)


def test_what_is_written_is_read(tmp_path):
    value = {"a": [1, 2.5, None, True], "ü": {"b": "\n"}}
    path = tmp_path / "x.json"
    path.write_bytes(strict_json.dump(value))
    assert strict_json.read_object(path) == value


@pytest.mark.parametrize(
    "name, text",
    [("a.b", "a.b"), ("a\nb", r"'a\nb'"), ("", "''"), ("\ud800", r"'\ud800'"), (["x"], "['x']")],
)
def test_names_are_shown_on_one_line(name, text):
    assert strict_json.shown(name) == text
    assert len(strict_json.shown("x" * 1000)) == 160
