"""The manifest of a checkpoint: size and SHA-256 of every file in its folder."""

import dataclasses
import os
from pathlib import Path

from lite3r_jax.errors import InputError
from lite3r_jax.files import atomic_write
from lite3r_jax.weights import strict_json
from lite3r_jax.weights.safetensors_writer import hash_file, sync_directory, write_file
from lite3r_jax.weights.sealed_json import FILE_NAME, records, seal, unseal
from lite3r_jax.weights.strict_json import shown

_FORMAT = "lite3r_jax checkpoint 1"


def write_manifest(folder: Path) -> None:
    """Hash every file of a complete folder, make it durable, and write the manifest into it.

    Raises:
        InputError: a file cannot be read or written.
    """
    files = {}
    for path in _files(folder):
        files[path.relative_to(folder).as_posix()] = dataclasses.asdict(hash_file(path))
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    for path in [*(p for p in folder.rglob("*") if p.is_dir()), folder.parent]:
        sync_directory(path)
    with atomic_write(folder / FILE_NAME) as partial:
        write_file(partial, strict_json.dump(seal(_FORMAT, {"files": files})))
    sync_directory(folder)


def damage(folder: Path) -> str | None:
    """Returns what is wrong with a folder according to its manifest; None if nothing is.

    Every file is read. Missing, additional and changed files are found, in any number of bits, also
    the manifest itself.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return f"it has no {FILE_NAME}, so it was never completed"
    try:
        remedy = "go back to an earlier checkpoint"
        body = unseal(_FORMAT, strict_json.read_object(path), path, remedy)
        try:
            wanted = {name: dataclasses.asdict(r) for name, r in records(body["files"]).items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{path}: not as this version writes it; {remedy}") from error
        there = {p.relative_to(folder).as_posix() for p in _files(folder)} - {FILE_NAME}
        if missing := sorted(wanted.keys() - there):
            return f"{shown(missing[0])} is missing"
        if added := sorted(there - wanted.keys()):
            return f"{shown(added[0])} does not belong to it"
        for name, record in wanted.items():
            if dataclasses.asdict(hash_file(folder / name)) != record:
                return f"{shown(name)} differs from its SHA-256"
    except InputError as error:
        return str(error)
    return None


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
