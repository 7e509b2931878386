"""Writes uploaded photos or a video (multipart/form-data) to files while they arrive.

The name that a browser gives a file is text for display and never a path: files are called
photo_0001.jpg and so on, in the order of arrival. Only the suffix of the name is used, which has to
be a known suffix of photos or videos; the content is checked later by the readers of the files.
Uploads beyond the limits are refused.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from lite3r_jax.data.photos import PHOTO_SUFFIXES
from lite3r_jax.data.video import VIDEO_SUFFIXES
from lite3r_jax.errors import did_you_mean, shown
from lite3r_jax.service.refusals import Refused

# it writes a line for each malformed byte, which is for the sender to know and not for the log
logging.getLogger("python_multipart").setLevel(logging.ERROR)

MAX_FIELD = 4096
"""Largest number of bytes of a form field that is no file."""
MAX_NAME = 200
"""Largest number of characters of a file's name that are kept for display."""


@dataclass(frozen=True)
class UploadedFile:
    """The names and the size of one file of an upload.

    Attributes:
        stored: name of the file on disk.
        name: name that the sender gave, for display.
        bytes: size of the file.
    """

    stored: str
    name: str
    bytes: int


@dataclass(frozen=True)
class UploadLimits:
    """The limits of an upload.

    Attributes:
        files: largest number of photos.
        total: largest number of bytes of the whole request.
    """

    files: int
    total: int


class Upload:
    """An arriving upload, whose files are written to a folder while it is parsed.

    Attributes:
        files: files that are complete, in order.
        fields: name -> text, of the parts that are no files.
    """

    def __init__(
        self, content_type: str, folder: Path, limits: UploadLimits, fields: tuple[str, ...]
    ):
        """Prepares the parser of a request.

        Args:
            content_type: header Content-Type of the request.
            folder: empty folder that the files are written to.
            limits: limits beyond which the upload is refused.
            fields: names of the form fields that are allowed besides files.

        Raises:
            Refused: the request is no multipart/form-data.
        """
        from python_multipart.exceptions import FormParserError
        from python_multipart.multipart import MultipartParser, parse_options_header

        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise Refused(
                "Content-Type: expected multipart/form-data with photos, as forms of browsers and"
                " curl -F send it",
                415,
            )
        self.files: list[UploadedFile] = []
        self.fields: dict[str, str] = {}
        self._folder, self._limits, self._known = folder, limits, fields
        self._header: Any = parse_options_header
        self._received, self._size, self._ended = 0, 0, False
        self._field = self._value = b""
        self._headers: dict[bytes, bytes] = {}
        self._file: BinaryIO | None = None
        self._name, self._stored, self._text = "", "", bytearray()
        self._malformed: Any = FormParserError
        callbacks: Any = {
            "on_part_begin": self._begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._data,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }
        try:
            self._parser = MultipartParser(options[b"boundary"], callbacks)
        except FormParserError as error:
            raise _malformed() from error

    def write(self, data: bytes) -> None:
        """Parses the next bytes of the request, and writes the content of files to disk.

        Raises:
            Refused: a limit is exceeded, the bytes are no valid form, or a file cannot be stored.
        """
        self._received += len(data)
        if self._received > self._limits.total:
            raise too_large(self._limits)
        try:
            self._parser.write(data)
        except self._malformed as error:
            raise _malformed() from error
        except OSError as error:
            raise Refused(
                f"the upload cannot be stored here ({error.strerror or error})", 507
            ) from error

    def finish(self) -> None:
        """Checks that the upload is complete and valid after the request has ended.

        Raises:
            Refused: the upload is cut off, has no file, has an empty file, or has a video and other
                files.
        """
        if not self._ended:
            raise Refused("the upload ended early; send it again")
        if not self.files:
            raise Refused("no photos were sent; at least one is needed, as parts with a file name")
        videos = [each for each in self.files if Path(each.stored).suffix in VIDEO_SUFFIXES]
        if videos and len(self.files) > 1:
            raise Refused(
                f"{videos[0].name}: a video is a scene of its own; send it alone, or photos only"
            )
        for each in self.files:
            if not each.bytes:
                raise Refused(f"{each.name}: is empty (0 bytes); copy it again or leave it out")

    def close(self) -> None:
        """Closes the file that is being written, if any; may be called again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    # -- called by the parser ------------------------------------------------------------------

    def _begin(self) -> None:
        self._headers, self._field, self._value = {}, b"", b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._field.lower()] = self._value
        self._field = self._value = b""

    def _headers_finished(self) -> None:
        kind, options = self._header(self._headers.get(b"content-disposition", b""))
        if kind != b"form-data":
            raise _malformed()
        self._size = 0
        if b"filename" in options:
            self._open(options[b"filename"].decode("utf-8", "replace"))
            return
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name not in self._known:
            raise Refused(
                f"{shown(name, 40)}: there is no such field; expected files and some of"
                f" {', '.join(self._known)}{did_you_mean(name, self._known)}"
            )
        if name in self.fields:
            raise Refused(f"{name}: is given twice; once is enough")
        self._name, self._text = name, bytearray()

    def _open(self, given: str) -> None:
        given = given.replace("\\", "/").rpartition("/")[2]
        self._name = shown(given, MAX_NAME)
        if len(self.files) >= self._limits.files:
            raise Refused(
                f"more than {self._limits.files} photos (serve.max_photos); send fewer", 413
            )
        suffix = Path(given).suffix.lower()
        # the suffix itself comes from the table, so that nothing of the name gets into a path
        every = sorted(PHOTO_SUFFIXES | VIDEO_SUFFIXES)
        match = next((each for each in every if each == suffix), None)
        if match is None:
            kinds = ", ".join(each[1:] for each in every)
            raise Refused(
                f"{self._name}: is neither a photo nor a video by its name ({kinds})", 415
            )
        self._stored = f"photo_{len(self.files) + 1:04d}{match}"
        self._file = (self._folder / self._stored).open("xb")

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._size += end - start
        if self._file is not None:
            self._file.write(data[start:end])
        elif self._size > MAX_FIELD:
            raise Refused(f"{self._name}: longer than {MAX_FIELD} bytes", 413)
        else:
            self._text += data[start:end]

    def _part_end(self) -> None:
        if self._file is not None:
            self.close()
            self.files.append(UploadedFile(self._stored, self._name, self._size))
            return
        try:
            self.fields[self._name] = self._text.decode()
        except UnicodeDecodeError as error:
            raise Refused(f"{self._name}: not UTF-8 text (byte {error.start})") from error

    def _end(self) -> None:
        self._ended = True


def with_names_of_senders(message: str, folder: Path, files: Mapping[str, str]) -> str:
    """Replaces the paths and names of stored files in a message by the names that the sender gave.

    Args:
        message: message of an error.
        folder: folder of the stored files.
        files: stored name -> name that the sender gave.
    """
    for stored, name in files.items():
        message = message.replace(str(folder / stored), name).replace(stored, name)
    return message.replace(f"{folder}/", "").replace(str(folder), "the upload")


def too_large(limits: UploadLimits) -> Refused:
    """Returns the exception that refuses an upload with too many bytes."""
    return Refused(
        f"the upload is larger than {limits.total / 1e6:g} MB (serve.max_upload_megabytes); send"
        " fewer or smaller photos",
        413,
    )


def _malformed() -> Refused:
    return Refused("the request is no well-formed multipart/form-data")
