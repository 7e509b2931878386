"""Stores the weights and the step of a training run in a small folder, to go on elsewhere.

A checkpoint holds all that the next step depends on, optimizer included, and only continues its
own run. A portable state is less and can be kept under version control: weights, their moving
average and the number of the step. A run that starts from one (`TrainOptions.init_from`) goes on
with the data of the next step; the optimizer's momentum starts at zero and the learning rate warms
up again, which costs some hundred updates.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from lite3r_jax.errors import InputError
from lite3r_jax.files import atomic_write
from lite3r_jax.training.checkpoint import newest_step, read_arrays
from lite3r_jax.weights import strict_json
from lite3r_jax.weights.safetensors_file import SafetensorsFile, TensorSpec
from lite3r_jax.weights.safetensors_writer import FileRecord, SafetensorsWriter
from lite3r_jax.weights.sealed_json import check_types

ARRAYS, RECORD = "arrays.safetensors", "record.json"
PARTS = ("params", "average")
_FORMAT = "lite3r_jax training state 1"


@dataclass(frozen=True)
class PortableState:
    """Weights, moving average and step of a training run, read from a portable folder.

    Attributes:
        step: batches that were seen.
        views: images that were seen, over all parts of the training.
        parts: of the training, one after the other: steps, views, settings that changed, versions.
        params: path -> parameter, float32.
        average: path -> its moving average, float32; None if the run had none.
        digest: SHA-256 of the record, which contains the SHA-256 of the arrays.
    """

    step: int
    views: int
    parts: tuple[Mapping[str, Any], ...]
    params: Mapping[str, np.ndarray]
    average: Mapping[str, np.ndarray] | None
    digest: str


@dataclass(frozen=True)
class _Record:
    """The JSON record of a portable state (`record.json`) without its format and SHA-256."""

    step: int
    views: int
    parts: tuple[Mapping[str, Any], ...]
    arrays: FileRecord


def write_portable(
    run: Path,
    out: Path,
    *,
    views: int,
    parts: Sequence[Mapping[str, Any]],
    step: int | None = None,
) -> int:
    """Write the weights and moving average of a checkpoint of a run as a portable folder.

    Arrays are rounded to bfloat16: an update changes a weight by more than that.

    Args:
        run: folder of the run.
        out: folder to be made or replaced.
        views: images that were seen up to the checkpoint, over all parts.
        parts: see `PortableState`, this one included.
        step: of which checkpoint; None: the newest.

    Returns:
        The step of the checkpoint.

    Raises:
        InputError: no such checkpoint, it is damaged, or `out` cannot be written.
    """
    step = newest_step(run) if step is None else step
    arrays = {f"params/{k}": x for k, x in read_arrays(run, step).items()}
    arrays |= {f"average/{k}": x for k, x in read_arrays(run, step, "average").items()}
    host = {name: np.asarray(jnp.asarray(arrays[name], jnp.bfloat16)) for name in sorted(arrays)}
    specs = {name: TensorSpec(x.shape, "BF16") for name, x in host.items()}
    with atomic_write(out, overwrite=True) as partial:
        partial.mkdir()
        with SafetensorsWriter(partial / ARRAYS, specs) as writer:
            for name, x in host.items():
                writer.write(name, x)
        assert writer.record is not None
        body = {
            "format": _FORMAT,
            "step": step,
            "views": views,
            "parts": [dict(part) for part in parts],
            "arrays": asdict(writer.record),
        }
        data = strict_json.dump({**body, "sha256": _digest(body)})
        (partial / RECORD).write_bytes(data)
    return step


def read_portable(folder: Path) -> PortableState:
    """Read a portable state of a training run that `write_portable` wrote.

    Raises:
        InputError: the folder holds no such state, or it is damaged or of another version.
    """
    path = folder / RECORD
    if not os.path.isfile(path):
        raise InputError(f"{path}: missing; expected what tools.training_state wrote")
    body = strict_json.read_object(path)
    digest = body.pop("sha256", None)
    if digest != _digest(body) or body.get("format") != _FORMAT:
        raise InputError(f"{path}: damaged, or of another version")
    try:
        record = _Record(
            step=body["step"],
            views=body["views"],
            parts=tuple(body["parts"]),
            arrays=FileRecord(**body["arrays"]),
        )
        check_types(record)
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: not as this version writes it ({error})") from error
    data = (folder / ARRAYS).read_bytes() if os.path.isfile(folder / ARRAYS) else b""
    if hashlib.sha256(data).hexdigest() != record.arrays.sha256:
        raise InputError(f"{folder / ARRAYS}: missing or damaged; restore both files")
    arrays: dict[str, dict[str, np.ndarray]] = {part: {} for part in PARTS}
    with SafetensorsFile(folder / ARRAYS) as file:
        for name in file.specs:
            part, _, rest = name.partition("/")
            if part not in arrays:
                raise InputError(f"{folder / ARRAYS}: {name[:60]!r} is no array of a training")
            arrays[part][rest] = np.asarray(file.read(name)).astype(np.float32)
    return PortableState(
        step=record.step,
        views=record.views,
        parts=record.parts,
        params=arrays["params"],
        average=arrays["average"] or None,
        digest=digest,
    )


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
