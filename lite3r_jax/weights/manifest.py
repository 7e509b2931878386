"""The manifest of converted weights: origin, counts, and SHA-256 of every file."""

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lite3r_jax.errors import InputError
from lite3r_jax.weights import strict_json
from lite3r_jax.weights.safetensors_writer import FileRecord
from lite3r_jax.weights.sealed_json import (
    FILE_NAME,
    check_types,
    flat_records,
    records,
    seal,
    unseal,
    written,
)

CONFIG_FILE = "config.json"
CARRIED_FILE = "carried.safetensors"
SOURCE_HEADER_FILE = "source_header.json"
DEPLOYED_FORMAT = "lite3r_jax deployed 1"
_FORMAT = "lite3r_jax weights 1"


@dataclass(frozen=True)
class Origin:
    """License and hub repository of a checkpoint.

    Attributes:
        license: of the weights, as far as known; "unknown" otherwise.
        license_from: who says so.
        repo: hub repository, if it came from one.
        revision: commit of the repository.
    """

    license: str = "unknown"
    license_from: str = "nobody said"
    repo: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class Part:
    """Numbers of tensors, parameters and scalars in a top-level part of a model.

    Attributes:
        tensors: number of upstream tensors that went in.
        leaves: number of parameters here, of which a stack of layers is one.
        parameters: number of scalars.
    """

    tensors: int
    leaves: int
    parameters: int


@dataclass(frozen=True)
class Manifest:
    """The manifest of converted weights: model, source, counts and files.

    Attributes:
        backbone: registry name of the model.
        heads: heads that the weights have.
        origin: see `Origin`.
        source_files: file name -> record, of the checkpoint.
        dtypes: safetensors dtype -> upstream tensors of it.
        parts: part -> counts; the weights of a part are in `<part>.safetensors`.
        skipped: upstream tensor -> why the model does not take it; kept in `carried.safetensors`.
        files: file name -> record, of every other file in the directory.
        tool: program and versions.
        date: UTC, ISO 8601.
    """

    backbone: str
    heads: tuple[str, ...]
    origin: Origin
    source_files: Mapping[str, FileRecord]
    dtypes: Mapping[str, int]
    parts: Mapping[str, Part]
    skipped: Mapping[str, str]
    files: Mapping[str, FileRecord]
    tool: str
    date: str

    def to_json(self) -> dict[str, Any]:
        """Returns the manifest as a JSON object with its own SHA-256."""
        return seal(_FORMAT, {**dataclasses.asdict(self), "heads": list(self.heads)})

    def report(self) -> str:
        """Returns a readable table of parts, skipped tensors, dtypes, license and files."""
        rows: list[tuple[str, ...]] = [("part", *_COUNTS, "bytes")]
        for name, part in self.parts.items():
            size = self.files[f"{name}.safetensors"].size
            counts = (part.tensors, part.leaves, part.parameters, size)
            rows.append((name, *(f"{count:,}" for count in counts)))
        total = [sum(getattr(p, k) for p in self.parts.values()) for k in _COUNTS]
        size = sum(record.size for record in self.files.values())
        rows.append(("mapped", *(f"{count:,}" for count in (*total, size))))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(
                cell.rjust(width) if i else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        lines += [f"skipped  {name}: {reason}" for name, reason in self.skipped.items()]
        lines.append("dtypes   " + ", ".join(f"{k} x {v}" for k, v in self.dtypes.items()))
        lines.append(f"license  {self.origin.license} ({self.origin.license_from})")
        return "\n".join([*lines, *written(self.source_files, "read"), *written(self.files)])


_COUNTS = tuple(f.name for f in dataclasses.fields(Part))


def read_manifest(directory: Path, remedy: str = "convert again") -> Manifest:
    """Reads and checks the manifest of a directory of converted weights.

    Args:
        directory: made by `convert`.
        remedy: what to do when it is damaged, for messages.

    Raises:
        InputError: there is no manifest, or it is damaged, edited or of another version.
    """
    path = directory / FILE_NAME
    if os.path.isfile(directory):
        raise InputError(
            f"{directory}: a file, expected a directory of converted weights; convert it with "
            "lite3r convert"
        )
    if not os.path.isdir(directory):
        raise InputError(f"{directory}: no such directory; expected converted weights")
    if not path.is_file():
        raise InputError(
            f"{path}: missing, so this is no directory of converted weights; make one with "
            "lite3r convert"
        )
    body = strict_json.read_object(path)
    if body.get("format") == DEPLOYED_FORMAT:
        raise InputError(
            f"{directory}: a deployed model, which has no weights in full precision; open it with"
            " lite3r_jax.load, or name the weights that it was made from"
        )
    body = unseal(_FORMAT, body, path, remedy)
    try:
        return _from_json(body)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: not as this version writes it; {remedy}") from error


def _from_json(body: dict[str, Any]) -> Manifest:
    fields = {f.name for f in dataclasses.fields(Manifest)}
    if set(body) != fields:
        raise ValueError("other fields")
    files = flat_records(body["files"])
    parts = {name: Part(**counts) for name, counts in body["parts"].items()}
    if CONFIG_FILE not in files or not {f"{name}.safetensors" for name in parts} <= set(files):
        raise ValueError("files and parts disagree")
    manifest = Manifest(
        backbone=_text(body["backbone"]),
        heads=tuple(_text(head) for head in body["heads"]),
        origin=Origin(**body["origin"]),
        source_files=records(body["source_files"]),
        dtypes=dict(body["dtypes"]),
        parts=parts,
        skipped=dict(body["skipped"]),
        files=files,
        tool=_text(body["tool"]),
        date=_text(body["date"]),
    )
    check_types(manifest)
    return manifest


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError("expected text")
    return value
