"""Uploads: whatever the pieces, the same files; whatever the bytes, files or one line."""

import itertools
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lite3r_jax.errors import InputError
from lite3r_jax.service.uploads import (
    Upload,
    UploadedFile,
    UploadLimits,
    with_names_of_senders,
)
from tests.service.client import BOUNDARY, form

KIND = f"multipart/form-data; boundary={BOUNDARY}"
LIMITS = UploadLimits(files=5, total=10_000)


def receive(pieces, folder: Path, limits=LIMITS) -> Upload:
    upload = Upload(KIND, folder, limits, ("name", "size"))
    try:
        for piece in pieces:
            upload.write(piece)
        upload.finish()
    finally:
        upload.close()
    return upload


def cut(body: bytes, places) -> list[bytes]:
    edges = [0, *sorted(place % (len(body) + 1) for place in places), len(body)]
    return [body[a:b] for a, b in itertools.pairwise(edges)]


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=5),
    st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=50),
    st.lists(st.integers(0, 3000), max_size=20),
)
def test_what_was_sent_is_stored_however_it_is_cut(contents, text, places):
    files = [(f"{i}.jpg", content) for i, content in enumerate(contents)]
    with tempfile.TemporaryDirectory() as folder:
        upload = receive(cut(form(files, name=text), places), Path(folder))
        stored = [f"photo_{i + 1:04d}.jpg" for i in range(len(files))]
        assert upload.files == [
            UploadedFile(each, name, len(content))
            for each, (name, content) in zip(stored, files, strict=True)
        ]
        assert [(Path(folder) / each).read_bytes() for each in stored] == contents
        assert upload.fields == {"name": text}


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_damaged_forms_are_read_or_refused_and_stay_in_their_folder(data):
    body = bytearray(form([("a.jpg", b"123"), ("b.png", b"4567")], name="x"))
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(body) - 1))
        match data.draw(st.integers(0, 2)):
            case 0:
                body[place] = data.draw(st.integers(0, 255))
            case 1:
                del body[place : place + data.draw(st.integers(1, 30))]
            case _:
                body[place:place] = data.draw(st.binary(max_size=30))
        if not body:
            break
    with tempfile.TemporaryDirectory() as outer:
        folder = Path(outer) / "folder"
        folder.mkdir()
        try:
            upload = receive([bytes(body)], folder)
            assert upload.files
        except InputError as error:
            assert "\n" not in str(error)
        assert list(Path(outer).iterdir()) == [folder]
        assert all(path.name.startswith("photo_") for path in folder.iterdir())


def test_a_full_disk_is_a_line(tmp_path):
    upload = Upload(KIND, tmp_path / "gone", LIMITS, ())
    with pytest.raises(InputError, match="cannot be stored here"):
        upload.write(form([("a.jpg", b"1")]))


def test_messages_name_photos_as_their_senders_do(tmp_path):
    names = {"photo_0001.jpg": "IMG 7.jpg", "photo_0002.jpg": "IMG 8.jpg"}
    message = f"{tmp_path / 'photo_0002.jpg'}: cannot be read"
    assert with_names_of_senders(message, tmp_path, names) == "IMG 8.jpg: cannot be read"
    message = f"{tmp_path}: too few views"
    assert with_names_of_senders(message, tmp_path, names) == "the upload: too few views"
