"""Derives names of exported files from the names of views."""

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath

from lite3r_jax.errors import InputError


def with_suffixes(names: Sequence[str], suffixes: Sequence[str]) -> tuple[str, ...]:
    """Replaces the suffixes of names so that all results differ, ignoring case.

    Views that would get the same name (a.jpg and a.png) keep the old suffix inside of the new name
    (a.jpg.png) unless it is the new one already; if that is taken, all names keep it.

    Args:
        names: names that all differ, ignoring case.
        suffixes: new suffix of each name, with one dot, at its start.
    """
    pairs = list(zip(names, suffixes, strict=True))
    replaced = [str(PurePosixPath(name).with_suffix(suffix)) for name, suffix in pairs]
    taken = Counter(name.casefold() for name in replaced)
    result = []
    for (name, suffix), new in zip(pairs, replaced, strict=True):
        if taken[new.casefold()] == 1:
            result.append(new)
        else:
            result.append(name if PurePosixPath(name).suffix == suffix else name + suffix)
    if len({name.casefold() for name in result}) < len(result):
        return tuple(name + suffix for name, suffix in pairs)
    return tuple(result)


def without_blanks(names: Sequence[str]) -> tuple[str, ...]:
    """Replaces every blank in names by "_".

    Raises:
        InputError: two names become the same.
    """
    old: dict[str, str] = {}
    for name in names:
        key = name.replace(" ", "_").casefold()
        if key in old:
            raise InputError(
                f"{old[key]!r} and {name!r}: cannot both be written, since file names get _ for"
                " blanks here; rename one of the photos"
            )
        old[key] = name
    return tuple(name.replace(" ", "_") for name in names)
