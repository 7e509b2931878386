"""The manifest of a checkpoint: what every file in it has to be."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from lite3r_jax.errors import InputError
from lite3r_jax.files import staged
from lite3r_jax.weights import strict_json
from lite3r_jax.weights.safetensors_writer import hash_file, sync_directory, write_file
from lite3r_jax.weights.strict_json import shown

FILE_NAME = "manifest.json"
_FORMAT = "lite3r_jax checkpoint 1"


def write_manifest(folder: Path) -> None:
    """Hash every file of a complete folder, make it durable, and write the manifest into it.

    Raises:
        InputError: a file cannot be read or written.
    """
    files = {}
    for path in _files(folder):
        record = hash_file(path)
        files[path.relative_to(folder).as_posix()] = {"size": record.size, "sha256": record.sha256}
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    for path in [*(p for p in folder.rglob("*") if p.is_dir()), folder.parent]:
        sync_directory(path)
    body = {"format": _FORMAT, "files": files}
    with staged(folder / FILE_NAME) as partial:
        write_file(partial, strict_json.dump(body | {"sha256": _digest(body)}))
    sync_directory(folder)


def damage(folder: Path) -> str | None:
    """What is wrong with a folder that has a manifest; None if nothing is.

    Every file is read. Missing, additional and changed files are found, in any number of bits, also
    the manifest itself.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return f"it has no {FILE_NAME}, so it was never completed"
    try:
        body = strict_json.read_object(path)
        if body.pop("sha256", None) != _digest(body) or body.get("format") != _FORMAT:
            return f"{FILE_NAME} is damaged or of another version"
        wanted = body["files"]
        there = {p.relative_to(folder).as_posix() for p in _files(folder)} - {FILE_NAME}
        if missing := sorted(wanted.keys() - there):
            return f"{shown(missing[0])} is missing"
        if added := sorted(there - wanted.keys()):
            return f"{shown(added[0])} does not belong to it"
        for name, record in wanted.items():
            found = hash_file(folder / name)
            if (found.size, found.sha256) != (record["size"], record["sha256"]):
                return f"{shown(name)} differs from its SHA-256"
    except InputError as error:
        return str(error)
    return None


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
