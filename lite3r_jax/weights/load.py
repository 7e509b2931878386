"""Loads models with pretrained weights from directories, hub repositories or the package."""

import hashlib
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx

from lite3r_jax.attention.plan import Plan
from lite3r_jax.attention.strategy import AttentionCore
from lite3r_jax.backbones.base import get_backbone
from lite3r_jax.errors import InputError, did_you_mean
from lite3r_jax.layers.rngs import traced_rngs
from lite3r_jax.weights import hub, strict_json
from lite3r_jax.weights.abstract import AbstractModel, abstract_model
from lite3r_jax.weights.converted import ConvertedWeights, VerifiedFiles
from lite3r_jax.weights.manifest import CONFIG_FILE
from lite3r_jax.weights.safetensors_file import DTYPES, SafetensorsFile, TensorSpec, as_bytes
from lite3r_jax.weights.safetensors_writer import FileRecord
from lite3r_jax.weights.strict_json import shown

BUNDLED = {"vggt-tiny": Path(__file__).parent / "bundled" / "vggt_tiny"}
"""Name -> directory of weights that come with the package."""


def load(
    source: str | os.PathLike[str],
    *,
    heads: Sequence[str] | None = None,
    dtype: Any = jnp.float32,
    param_dtype: Any = None,
    plan: Plan | None = None,
    seed: int = 0,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Any:
    """Loads a model with the weights of a converted directory or of a known hub repository.

    The files that are needed are checked against the SHA-256 in the manifest while they are read.
    One parameter at a time goes from disk to the default device; there is never a second copy of
    the weights.

    Args:
        source: directory made by `lite3r convert` or by `--mode=train`; or a
            repository such as "facebook/VGGT-1B", which is fetched through huggingface_hub and
            converted once; or "vggt-tiny", the small model that comes with the package (a directory
            of that name is "./vggt-tiny").
        heads: heads to build, e.g. ("camera", "depth"); None for all that the weights have. Files
            of other heads are not read.
        dtype: compute dtype of the model, float32 or bfloat16.
        param_dtype: dtype in which parameters are held. None: the one they are stored in, or
            float32 where the file mixes several.
        plan: attention strategy of every site; when None that which the weights were trained with,
            dense but for a sparse pi^3. Parameters that strategies add and the weights are without
            get their initial values.
        seed: of these initial values; nothing else depends on it.
        cache_dir: where converted hub weights are kept; the user's cache directory when None.

    Returns:
        The model (flax.nnx.Module), on the default device.

    Raises:
        InputError: no such directory, a damaged, missing or extra file (named), heads that the
            weights do not have, or a hub repository that cannot be reached.
    """
    directory, remedy = resolve(source, cache_dir)
    weights = ConvertedWeights(directory, remedy)
    manifest = weights.manifest
    backbone = get_backbone(manifest.backbone)
    wanted = manifest.heads if heads is None else tuple(heads)
    for head in wanted:
        if head not in manifest.heads:
            raise InputError(
                f"heads: {shown(head)} is not in {directory}; choose from "
                f"{', '.join(manifest.heads) or 'none'}"
            )
    weights.verify([CONFIG_FILE])
    config = backbone.config_from_json(strict_json.read_object(directory / CONFIG_FILE))
    stored = {DTYPES[name] for name in manifest.dtypes}
    if param_dtype is None:
        param_dtype = stored.pop() if len(stored) == 1 else jnp.float32
    kinds = {"heads": wanted, "plan": plan, "dtype": dtype, "param_dtype": param_dtype}
    model = abstract_model(backbone, config, **kinds)
    parts = list(dict.fromkeys(path.partition("/")[0] for path in model.shapes))
    arrays = _read(weights, model, parts)
    if new := model.shapes.keys() - arrays.keys():
        arrays |= _initial(partial(backbone.build, config, **kinds), new, seed)
    return model.fill(arrays)


def resolve(
    source: str | os.PathLike[str], cache_dir: str | os.PathLike[str] | None = None
) -> tuple[Path, str]:
    """Returns the directory of weights that `load` reads, fetched and converted if need be.

    Args:
        source: as for `load`.
        cache_dir: as for `load`.

    Returns:
        (directory, what to do if it is damaged).

    Raises:
        InputError: there is nothing of that name, with the nearest name; a hub repository cannot be
            reached or converted.
    """
    if str(source) in BUNDLED:
        return BUNDLED[str(source)], "install lite3r_jax again"
    directory, name = Path(source), str(source)
    if os.path.lexists(directory):
        return directory, "convert again"
    if not hub.looks_like_repo(name):
        names = [*BUNDLED, *hub.known()]
        expected = "converted weights"
        if not os.path.dirname(name):  # more likely a name than a place
            expected += f", or one of: {', '.join(names)}"
        raise InputError(
            f"{shown(name)}: no such directory; expected {expected}{did_you_mean(name, names)}"
        )
    directory = hub.converted(str(source), None if cache_dir is None else Path(cache_dir))
    return directory, f"delete {directory} and load again"


def _initial(
    build: Callable[..., nnx.Module], paths: Collection[str], seed: int
) -> dict[str, jax.Array]:
    """Computes the initial values of some parameters of a model, and of no others."""

    @jax.jit
    def some() -> dict[str, jax.Array]:
        flat = nnx.to_flat_state(nnx.state(build(rngs=traced_rngs(seed)), nnx.Param))
        every = {"/".join(map(str, key)): variable[...] for key, variable in flat}
        return {path: every[path] for path in paths}

    return some()


def _of_strategies(model: AbstractModel) -> set[str]:
    """Returns the paths of parameters that belong to attention strategies, not to the backbone."""
    module = nnx.merge(model.graph, nnx.from_flat_state(list(model.variables.values())))
    return {
        "/".join(map(str, path + key))
        for path, node in nnx.iter_graph(module)
        if isinstance(node, AttentionCore)
        for key, _ in nnx.to_flat_state(nnx.state(node, nnx.Param))
    }


def _read(
    weights: ConvertedWeights, model: AbstractModel, parts: Sequence[str]
) -> dict[str, jax.Array]:
    """Reads all parameters of the backbone, and those of strategies that the weights have."""
    return read_arrays(weights, parts, model.dtypes, partial(_check_fit, weights, model))


def read_arrays(
    weights: VerifiedFiles,
    parts: Sequence[str],
    dtypes: Mapping[str, np.dtype],
    check: Callable[[Mapping[str, TensorSpec]], None],
) -> dict[str, jax.Array]:
    """Reads the arrays of some parts of a model to the default device, hashed on the way.

    Args:
        weights: the directory.
        parts: names of the parts; the arrays of a part are in `<part>.safetensors`.
        dtypes: path -> dtype that the array shall have.
        check: called with path -> spec of what the files have, before any of it is read; raises
            InputError if that does not fit.

    Raises:
        InputError: what `check` raises, or a file that is damaged, which is then the reason given.
    """
    names = [f"{part}.safetensors" for part in parts]
    files: list[SafetensorsFile] = []
    try:
        try:
            files.extend(weights.open(name) for name in names)
            check({name: spec for file in files for name, spec in file.specs.items()})
        except InputError:
            # Damage explains a file that does not fit better than its consequences do.
            weights.verify(name for name in names if name in weights.files)
            raise
        arrays: dict[str, jax.Array] = {}
        for file in files:
            digest = hashlib.sha256(file.header)
            for name in file.specs:
                arrays[name] = _to_device(file, name, dtypes[name], digest)
            size = len(file.header) + sum(spec.nbytes for spec in file.specs.values())
            weights.check(file.path.name, FileRecord(size, digest.hexdigest()))
        return arrays
    finally:
        for file in files:
            file.close()


def _check_fit(
    weights: VerifiedFiles, model: AbstractModel, specs: Mapping[str, TensorSpec]
) -> None:
    shapes = {name: spec.shape for name, spec in specs.items()}
    own = _of_strategies(model)
    wanted = {n: shape for n, shape in model.shapes.items() if n not in own or n in shapes}
    wrong = [name for name, shape in wanted.items() if shapes.get(name) != shape]
    wrong += [name for name in shapes if name not in wanted]
    if wrong:
        raise InputError(
            f"{weights.path}: does not fit the model of this version, {len(wrong)} parameters "
            f"differ ({', '.join(shown(name) for name in wrong[:5])}); {weights.remedy}"
        )


def _to_device(file: SafetensorsFile, name: str, dtype: np.dtype, digest: Any) -> jax.Array:
    """Reads and hashes one parameter, casts it where needed and puts it on the device."""
    spec = file.specs[name]
    host = _aligned(spec.shape, dtype)
    if DTYPES[spec.dtype] == dtype:
        for _, piece in file.read_chunks(name, buffer=host):
            digest.update(as_bytes(piece))
    else:
        flat = host.reshape(-1)
        for where, piece in file.read_chunks(name):
            digest.update(as_bytes(piece))
            flat[where] = _cast(piece, dtype)
    # On a GPU the transfer is asynchronous; waiting keeps one parameter in host memory, not many.
    return jax.block_until_ready(jax.device_put(host))


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Returns an uninitialized array aligned to 64 bytes, which JAX on a CPU need not copy."""
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def _cast(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if array.dtype == ml_dtypes.bfloat16 and dtype == np.float32:
        # bfloat16 is the upper half of a float32; ml_dtypes converts 10 times slower.
        return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):
        return array.astype(dtype)
