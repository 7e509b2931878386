"""Saves the weights of a model as a directory that `load` reads."""

import datetime
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lite3r_jax.backbones.base import get_backbone
from lite3r_jax.errors import InputError
from lite3r_jax.files import atomic_write
from lite3r_jax.weights import strict_json
from lite3r_jax.weights.abstract import abstract_model
from lite3r_jax.weights.convert import contiguous, tool
from lite3r_jax.weights.manifest import CONFIG_FILE, FILE_NAME, Manifest, Origin, Part
from lite3r_jax.weights.safetensors_file import DTYPE_NAMES, TensorSpec
from lite3r_jax.weights.safetensors_writer import (
    FileRecord,
    SafetensorsWriter,
    data_order,
    write_file,
)


def save(
    model: Any,
    out: str | os.PathLike[str],
    *,
    backbone: str,
    dtype: Any = None,
    origin: Origin | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Write a model as a directory of weights.

    The directory is made under a temporary name and appears only when it is complete.

    Args:
        model: of a backbone, with dense attention or with strategies that add no parameters.
        out: directory to make.
        backbone: registry name.
        dtype: in which parameters are stored, float32, float16 or bfloat16; None: as they are.
        origin: license, and who says so.
        overwrite: whether `out` may be replaced.

    Returns:
        The manifest: what was written, with hashes.

    Raises:
        InputError: parameters that are not finite, or not those of the backbone; `out` exists or
            cannot be written.
    """
    out = Path(os.path.abspath(out))
    entry = get_backbone(backbone)
    wanted = abstract_model(entry, model.config, heads=model.heads).shapes
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    arrays = {"/".join(map(str, key)): variable[...] for key, variable in flat}
    if other := sorted(set(arrays) ^ set(wanted)):
        raise InputError(
            f"{out}: weights of {backbone} are saved, and {other[0]} is only in"
            f" {'the model' if other[0] in arrays else 'the backbone'}; a student is saved as such"
        )
    kinds = {path: jnp.dtype(x.dtype if dtype is None else dtype) for path, x in arrays.items()}
    specs = {path: TensorSpec(x.shape, DTYPE_NAMES[kinds[path]]) for path, x in arrays.items()}
    parts = {}
    with atomic_write(out, overwrite=overwrite) as partial:
        partial.mkdir()
        files = write_parts(partial, arrays, kinds, out)
        for part in (name.removesuffix(".safetensors") for name in files):
            mine = [spec for path, spec in specs.items() if path.partition("/")[0] == part]
            parts[part] = Part(0, leaves=len(mine), parameters=sum(spec.size for spec in mine))
        described = strict_json.dump(entry.config_to_json(model.config))
        files[CONFIG_FILE] = write_file(partial / CONFIG_FILE, described)
        manifest = Manifest(
            backbone=backbone,
            heads=tuple(model.heads),
            origin=origin or Origin(),
            source_files={},
            dtypes=dict(Counter(spec.dtype for spec in specs.values()).most_common()),
            parts=parts,
            skipped={},
            files=files,
            tool=tool(),
            date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )
        write_file(partial / FILE_NAME, strict_json.dump(manifest.to_json()))
    return manifest


def write_parts(
    folder: Path, arrays: Mapping[str, Any], dtypes: Mapping[str, np.dtype], label: Path
) -> dict[str, FileRecord]:
    """Write arrays as one safetensors file for every part of a model.

    Args:
        folder: that the files are written to.
        arrays: path -> array. The first part of the path is the part of the model.
        dtypes: path -> dtype to be stored in.
        label: the name that the folder will have, for messages.

    Returns:
        File name -> record.

    Raises:
        InputError: numbers that are not finite. Float8 codes are not checked, their scales are.
    """
    files = {}
    for part in dict.fromkeys(path.partition("/")[0] for path in sorted(arrays)):
        mine = {
            path: TensorSpec(np.shape(x), DTYPE_NAMES[dtypes[path]])
            for path, x in arrays.items()
            if path.partition("/")[0] == part
        }
        ordered = {path: mine[path] for path in data_order(mine)}
        file = folder / f"{part}.safetensors"
        with SafetensorsWriter(file, ordered, {"format": "lite3r_jax"}) as writer:
            for path in ordered:
                host = np.asarray(arrays[path])
                if host.itemsize > 1 and not np.isfinite(host.astype(np.float32)).all():
                    raise InputError(f"{label}: {path} holds NaN or infinite values")
                writer.write(path, contiguous(host.astype(dtypes[path])))
        assert writer.record is not None
        files[file.name] = writer.record
    return files


def to_host(x: jax.Array) -> np.ndarray:
    """Returns a whole array on the host; one that is spread over processes is gathered.

    Every process has to call this.
    """
    if not x.is_fully_addressable and not x.is_fully_replicated:
        from jax.experimental import multihost_utils

        x = multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(x)
