"""Detection and checks of HEIC photos (ISO/IEC 23008-12), which a plug-in of Pillow's reads."""

import re
from typing import BinaryIO

from lite3r_jax.errors import InputError

# HEVC images and sequences; mif1 and msf1 leave the coding open.
_BRANDS = frozenset(
    [b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"]
)
_AVIF_BRANDS = frozenset([b"avif", b"avis"])
_MAX_BOXES = 1000  # before the one with the items, which is among the first in real files
# Item entry up to its type (ISO/IEC 14496-12, 8.11.6): version 2 has short item numbers, 3 long.
_ITEM = re.compile(rb"infe(?:\x02.{7}|\x03.{9})", re.DOTALL)


def is_heif(head: bytes) -> bool:
    """Returns whether the file type box at the start of a file says HEIF, and not AVIF."""
    if head[4:8] != b"ftyp":
        return False
    box = head[8 : int.from_bytes(head[:4])]
    brands = {box[:4], *(box[i : i + 4] for i in range(8, len(box), 4))}
    return bool(brands & _BRANDS) and not brands & _AVIF_BRANDS


def register_plugin(name: str) -> None:
    """Make Pillow read HEIF: by pi_heif (LGPL decoder only), or pillow_heif (with GPL x265).

    Raises:
        InputError: neither of the two is installed; `name` is the photo that needs one.
    """
    try:
        from pi_heif import register_heif_opener
    except ImportError:
        try:
            from pillow_heif import register_heif_opener  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise InputError(
                f"{name}: is a HEIC photo, for which Pillow needs a plug-in;"
                " pip install 'lite3r_jax[heic]' (pi_heif), or save it as JPEG"
            ) from error
    register_heif_opener()


def check_items(file: BinaryIO, name: str) -> None:
    """Refuses a HEIC file with an item whose type or name is no text, or with overlapping items.

    If a type or name is not UTF-8, pi_heif (1.3, 1.4) crashes the process, which cannot be caught.
    Items that overlap would take minutes to look through.

    Raises:
        InputError: naming the photo.
    """
    place = 0
    for _ in range(_MAX_BOXES):
        file.seek(place)
        head = file.read(8)
        if len(head) < 8:
            return  # no metadata: the plug-in will say so
        length = max(8, int.from_bytes(head[:4]))
        if head[4:] == b"meta":
            break
        place += length
    else:
        raise _damaged(name)
    meta = file.read(length - 8)
    left = len(meta)  # items do not overlap, so that all together are no longer
    for item in _ITEM.finditer(meta):
        start = item.start() - 4
        text = meta[item.end() : start + int.from_bytes(meta[max(0, start) : start + 4])]
        left -= len(text)
        try:
            text.decode()
        except UnicodeDecodeError as error:
            raise _damaged(name) from error
        if left < 0:
            raise _damaged(name)


def _damaged(name: str) -> InputError:
    return InputError(
        f"{name}: cannot be read (damaged list of items); copy it again or remove it from the list"
    )
