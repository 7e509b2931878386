"""Opens image files: tells the format by content, and names files that are damaged or foreign."""

import io
import os
import stat
import struct
import threading
import warnings
import zlib
from typing import TYPE_CHECKING

from lite3r_jax.data import heif
from lite3r_jax.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

# HEIF needs a plug-in, see heif.py.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF", "HEIF")

# What Pillow raises on damaged data; Warning where the caller turned warnings into errors.
DECODE_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, EOFError, LookupError, ArithmeticError,
    AttributeError, AssertionError, RuntimeError, MemoryError, struct.error, zlib.error, Warning,
)  # fmt: skip
_PLAIN = (b"P1", b"P2", b"P3")  # portable pixmaps whose numbers are text
_PNG = b"\x89PNG\r\n\x1a\n"
_HEAD = 256  # bytes from which the kind of a file is told
_open_lock = threading.Lock()  # warning filters belong to the process, not to the thread


def head_of(source: str | os.PathLike[str] | bytes, name: str) -> bytes:
    """Returns the first bytes of a file, which must exist, be readable and not be empty.

    Raises:
        InputError: naming the file.
    """
    if isinstance(source, bytes):
        head = source[:_HEAD]
    else:
        try:
            regular = stat.S_ISREG(os.stat(source).st_mode)
        except PermissionError as error:
            raise _forbidden(name) from error
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            raise InputError(f"{name}: no such file; pass the paths of image files") from error
        if not regular:
            raise InputError(f"{name}: is not a file; pass the paths of image files")
        try:
            with open(source, "rb") as file:
                head = file.read(_HEAD)
        except PermissionError as error:
            raise _forbidden(name) from error
        except OSError as error:
            raise damaged(name, error) from error
    if not head:
        raise InputError(f"{name}: is empty (0 bytes); copy it again or remove it from the list")
    return head


def open_image(source: str | os.PathLike[str] | bytes, head: bytes, name: str) -> "PILImage":
    """Opens an image file without decoding its pixels.

    Raises:
        InputError: naming the file.
    """
    from PIL import Image, UnidentifiedImageError

    needs_plugin = heif.is_heif(head)
    try:
        if needs_plugin:
            with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
                heif.check_items(file, name)
        with _open_lock, warnings.catch_warnings():
            # Pillow warns at its own limit; the limit here is max_pixels
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            Image.init()
            if needs_plugin and "HEIF" not in Image.OPEN:
                heif.register_plugin(name)
            formats = [name for name in FORMATS if name in Image.OPEN]
            file = io.BytesIO(source) if isinstance(source, bytes) else source
            return Image.open(file, formats=formats)
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{name}: far more pixels than any photo; scale it down ({_one_line(error)})"
        ) from error
    except UnidentifiedImageError as error:
        raise InputError(
            f"{name}: is not an image in a supported format ({', '.join(formats)});"
            " convert it or remove it from the list"
        ) from error
    except DECODE_ERRORS as error:
        raise damaged(name, error) from error


def check_content(source: str | os.PathLike[str] | bytes, head: bytes, name: str) -> None:
    """Refuses what decoding would accept: text-form pixmaps, and PNG files with wrong checksums.

    Raises:
        InputError: naming the file.
    """
    if head.startswith(_PLAIN):
        raise InputError(
            f"{name}: is a pixmap in text form ({head[:2].decode()}), which takes minutes to"
            " read; save it in binary form (P4 to P6) or as PNG"
        )
    if not head.startswith(_PNG):
        return
    with open_image(source, head, name) as image:
        try:
            image.verify()
        except DECODE_ERRORS as error:
            raise damaged(name, error) from error


def _forbidden(name: str) -> InputError:
    return InputError(f"{name}: permission denied; allow reading it or remove it from the list")


def damaged(name: str, error: Exception) -> InputError:
    """Returns the error for a file that cannot be decoded."""
    return InputError(
        f"{name}: cannot be read ({_one_line(error)}); copy it again or remove it from the list"
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
