"""Runtime dependencies of the package: exact versions that were tested, and their licenses.

python -m tools.dependencies constraints    rewrites constraints.txt from what is installed here
python -m tools.dependencies licenses       lists every license; exit code 1 if one is not allowed
"""

import importlib.metadata as metadata
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PACKAGE = "lite3r_jax"
EXTRAS = ("viewer", "serve", "da3", "lens", "video", "train", "heic", "deploy", "refine")
"""Extras for users of the package.

The CUDA wheels of jax depend on the machine and are left to jax's own pins.
"""
CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
HEAD = """\
# What was tested together, with Python 3.11: pip install -c constraints.txt '.[viewer,train]'.
# Made by python -m tools.dependencies constraints; a test compares it with what is installed.
"""
COPYLEFT = re.compile(r"(?<!L)(A?GPL|General Public License)|SSPL|Commons Clause", re.IGNORECASE)
"""Licenses that would bind users of the package. LGPL libraries are linked, not copied: allowed."""
LESSER = re.compile(r"LGPL|Lesser General Public License", re.IGNORECASE)
BY_HAND: dict[str, str] = {}
"""Package without a license in its metadata -> what its repository says."""


def runtime() -> dict[str, metadata.Distribution]:
    """Returns by name the distributions that the package and its extras for users need.

    Raises:
        PackageNotFoundError: something is not installed.
    """
    needed: dict[str, metadata.Distribution] = {}
    todo: list[tuple[str, tuple[str, ...]]] = [(PACKAGE, EXTRAS)]
    seen = set()
    while todo:
        name, extras = todo.pop()
        key = canonicalize_name(name), tuple(sorted(extras))
        if key in seen:
            continue
        seen.add(key)
        distribution = metadata.distribution(name)
        needed[key[0]] = distribution
        for text in distribution.requires or []:
            need = Requirement(text)
            wanted = need.marker is None or any(
                need.marker.evaluate({"extra": extra}) for extra in ("", *extras)
            )
            if wanted:
                todo.append((need.name, tuple(need.extras)))
    del needed[canonicalize_name(PACKAGE)]
    return dict(sorted(needed.items()))


def constraints() -> str:
    """Returns the text of constraints.txt for the versions that are installed."""
    lines = [f"{name}=={each.version}" for name, each in runtime().items()]
    return HEAD + "\n".join(lines) + "\n"


def license_of(distribution: metadata.Distribution) -> str:
    """Returns a distribution's stated license: SPDX expression, classifiers, or free text."""
    about: Any = distribution.metadata  # a Message, which its protocol does not say
    name = canonicalize_name(about["Name"])
    stated = [about.get("License-Expression", "")]
    stated += [
        line.rpartition("::")[2].strip()
        for line in about.get_all("Classifier") or []
        if line.startswith("License ::")
    ]
    stated += [(about.get("License", "") or "").strip().split("\n")[0][:60], BY_HAND.get(name, "")]
    return next((text for text in stated if text and text != "OSI Approved"), "")


def licenses() -> Iterator[tuple[str, str, str]]:
    """Yields (name and version, license, what is wrong with it or "") of every dependency."""
    for name, distribution in runtime().items():
        text = license_of(distribution)
        wrong = "" if text else "states no license"
        if COPYLEFT.search(LESSER.sub("", text)):
            wrong = "is not allowed here"
        yield f"{name} {distribution.version}", text, wrong


def main(arguments: Sequence[str]) -> int:
    """Rewrites constraints.txt or lists the licenses; returns the exit code."""
    if list(arguments) == ["constraints"]:
        CONSTRAINTS.write_text(constraints())
        print(f"{CONSTRAINTS.name}: {len(runtime())} packages")
        return 0
    if list(arguments) != ["licenses"]:
        print(__doc__)
        return 2
    bad = 0
    for name, text, wrong in licenses():
        print(f"{name:40} {text}{f'   <-- {wrong}' if wrong else ''}")
        bad += bool(wrong)
    print(f"{bad} that are not allowed")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
