"""Converts a PyTorch checkpoint to a directory of weights, streamed, all or nothing."""

import datetime
import os
import re
import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from lite3r_jax.backbones.base import BackboneEntry, get_backbone
from lite3r_jax.errors import InputError
from lite3r_jax.files import atomic_write
from lite3r_jax.name_map import Checkpoint, NameMap, NamePlan, forward
from lite3r_jax.weights import strict_json
from lite3r_jax.weights.abstract import abstract_model
from lite3r_jax.weights.detect_checkpoint import detect_checkpoint
from lite3r_jax.weights.manifest import (
    CARRIED_FILE,
    CONFIG_FILE,
    FILE_NAME,
    SOURCE_HEADER_FILE,
    Manifest,
    Origin,
    Part,
)
from lite3r_jax.weights.safetensors_file import SafetensorsFile, TensorSource, TensorSpec
from lite3r_jax.weights.safetensors_writer import (
    FileRecord,
    SafetensorsWriter,
    data_order,
    hash_file,
    sync_directory,
    write_file,
)
from lite3r_jax.weights.strict_json import shown

# float64 has no place in a JAX model, integers and float8 without scales are no weights.
_DTYPES = ("F32", "F16", "BF16")


def convert(
    source: TensorSource,
    out: Path,
    *,
    backbone: str,
    config: Mapping[str, Any] | None = None,
    heads: Sequence[str] | None = None,
    overwrite: bool = False,
    origin: Origin | None = None,
    ignore: Collection[str] = (),
) -> Manifest:
    """Convert a checkpoint into a directory that `load` reads.

    Names, shapes and dtypes are checked before anything is written. Then one tensor after the other
    is read, checked for NaN and infinity, laid out as needed and written; dtypes stay as they are.
    The directory is made under a temporary name and appears only when it is complete.

    Args:
        source: the open checkpoint; stays open.
        out: directory to make.
        backbone: registry name.
        config: JSON form of the model's config; None for the published model, of several the one
            whose names the checkpoint has.
        heads: heads that the checkpoint has; None for all.
        overwrite: replace `out` if it is a directory of converted weights.
        origin: license and repository. None, or one that says nothing: the license that the
            published weights of this size have.
        ignore: tensors of the checkpoint that are not known here and may be left out; the manifest
            names them, and an export has them again.

    Raises:
        InputError: the checkpoint does not fit, holds NaN or changes meanwhile; `out` exists or
            cannot be written.
    """
    entry = get_backbone(backbone)
    if config is None:
        settings = entry.checkpoint.config_of(source.specs, entry.default_config)
    else:
        settings = entry.config_from_json(dict(config))
    kind = entry.checkpoint.of(settings)
    chosen = _checked_heads(entry, heads)
    out = Path(os.path.abspath(out))
    _check_out(out, overwrite, source)
    _check_kind(source, kind, chosen, kind.relatives(settings))
    model = abstract_model(entry, settings, heads=chosen)
    names = kind.names(settings)
    plan = _plan(source, names, model.shapes, config is None, ignore)
    targets = _target_specs(source, plan, model.shapes)
    if origin is None or origin == Origin():
        origin = _published(kind.license(settings))
    _check_space(out, sum(spec.nbytes for spec in source.specs.values()))

    state = _states(source)
    with _all_or_nothing(out, overwrite) as partial, ThreadPoolExecutor(1) as pool:
        hashes = {path.name: pool.submit(hash_file, path) for path in source.files}
        try:
            files, parts = _write_parts(source, partial, plan, targets)
            files.update(_write_rest(source, partial, plan, names))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        described = strict_json.dump(entry.config_to_json(settings))
        files[CONFIG_FILE] = write_file(partial / CONFIG_FILE, described)
        manifest = Manifest(
            backbone=backbone,
            heads=chosen,
            origin=origin,
            source_files={name: future.result() for name, future in hashes.items()},
            dtypes=dict(Counter(spec.dtype for spec in source.specs.values()).most_common()),
            parts=parts,
            skipped=plan.skipped,
            files=files,
            tool=tool(),
            date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )
        write_file(partial / FILE_NAME, strict_json.dump(manifest.to_json()))
        if _states(source) != state:
            raise InputError(f"{source.label}: changed while it was being converted; start again")
    return manifest


def license_beside(source: TensorSource) -> Origin:
    """Returns the license that a model card (README.md) beside the source names.

    It is read from the YAML front matter of the card.
    """
    card = source.files[0].parent / "README.md"
    try:
        lines = card.read_text(encoding="utf-8").splitlines()[:200]
    except (OSError, UnicodeDecodeError):
        return Origin()
    if not lines or lines[0].strip() != "---":
        return Origin()
    for line in lines[1:]:
        key, _, value = line.partition(":")
        if line.strip() == "---":
            break
        if key == "license" and value.strip().isprintable() and value.strip():
            return Origin(shown(value.strip(" '\"")), "model card beside the checkpoint")
    return Origin()


def contiguous(view: np.ndarray) -> np.ndarray:
    """Returns a C-contiguous array with the elements of a view.

    Transposed matrices are copied in strips one cache line of the result wide: 6 times faster than
    numpy's own order on a 4096 x 1024 float32 matrix.
    """
    if view.ndim != 2 or view.flags.c_contiguous:
        return np.ascontiguousarray(view)
    out = np.empty(view.shape, view.dtype)
    strip = max(1, 64 // view.dtype.itemsize)
    for start in range(0, view.shape[1], strip):
        out[:, start : start + strip] = view[:, start : start + strip]
    return out


def count_not_finite(tensor: np.ndarray) -> int:
    """Returns the number of NaN and infinities in a float32, float16 or bfloat16 array."""
    if tensor.dtype.itemsize == 2:
        exponent = 0x7C00 if tensor.dtype == np.float16 else 0x7F80
        return int(np.count_nonzero((tensor.view(np.uint16) & exponent) == exponent))
    with np.errstate(all="ignore"):
        # A finite sum proves finite terms; an infinite one may be mere overflow.
        if np.isfinite(tensor.sum()):
            return 0
    return int(tensor.size - np.count_nonzero(np.isfinite(tensor)))


def _published(license: str | None) -> Origin:
    """Returns the origin of weights without a stated one: the license of the published model."""
    if license is None:
        return Origin()
    return Origin(license, "what is published in this size; of other weights ask their authors")


def _checked_heads(entry: BackboneEntry, heads: Sequence[str] | None) -> tuple[str, ...]:
    if heads is None:
        return entry.heads
    for head in heads:
        if head not in entry.heads or list(heads).count(head) > 1:
            raise InputError(
                f"heads: {shown(head)} is not known or there twice; choose from "
                f"{', '.join(entry.heads)}"
            )
    return tuple(head for head in entry.heads if head in heads)


def _check_out(out: Path, overwrite: bool, source: TensorSource) -> None:
    if not out.parent.is_dir():
        raise InputError(f"{out}: cannot be written, {out.parent} is no directory; make it first")
    if not os.access(out.parent, os.W_OK):
        raise InputError(f"{out}: cannot be written, no permission in {out.parent}")
    if os.path.lexists(out):
        if not overwrite:
            raise InputError(f"{out}: exists; choose another directory or add --overwrite")
        empty = out.is_dir() and not out.is_symlink() and not any(out.iterdir())
        if not empty and (out.is_symlink() or not (out / FILE_NAME).is_file()):
            raise InputError(
                f"{out}: exists and is no directory of converted weights, so --overwrite does not "
                "touch it; choose another directory"
            )
    for path in source.files:
        if out in Path(os.path.abspath(path)).parents:
            raise InputError(
                f"{out}: would replace the checkpoint {path}; choose another directory"
            )


def _check_kind(
    source: TensorSource, kind: Checkpoint, heads: Sequence[str], relatives: Mapping[str, str]
) -> None:
    """Refuses another kind of checkpoint, or whole heads too many or too few, by name.

    The message then names the kind or the heads in place of 400 tensors.
    """

    def has(part: str) -> bool:
        return any(name.startswith(part + ".") for name in source.specs)

    for sign, what in relatives.items():
        if other := next((name for name in source.specs if re.fullmatch(sign, name)), None):
            raise InputError(
                f"{source.label}: not a {kind.title} checkpoint but {what} (it has {shown(other)})"
            )
    if not has(kind.trunk):
        other = detect_checkpoint(source.specs)
        looks = f"looks like {other}" if other else "is of no kind known here"
        some = ", ".join(shown(name) for name in list(source.specs)[:3]) or "none"
        raise InputError(
            f"{source.label}: not a {kind.title} checkpoint, it {looks}; expected tensors named "
            f"{kind.trunk}.*, found {some}"
        )
    present = [head for head, part in kind.heads.items() if has(part)]
    if absent := [head for head in heads if head not in present]:
        rest = ",".join(head for head in heads if head in present) or "none of them"
        raise InputError(
            f"{source.label}: has no tensors of the heads {', '.join(absent)}; if that is how it "
            f"should be, pass --heads {rest}"
        )
    if extra := [head for head in present if head not in heads]:
        raise InputError(
            f"{source.label}: has the heads {', '.join(extra)}, which --heads leaves out; convert "
            f"with --heads {','.join(present)} and choose heads when you load"
        )


def _plan(
    source: TensorSource,
    names: NameMap,
    shapes: Mapping[str, tuple[int, ...]],
    published: bool,
    ignore: Collection[str],
) -> NamePlan:
    sources = {name: spec.shape for name, spec in source.specs.items()}
    try:
        plan = names.match(sources, shapes, source.label, ignore)
    except InputError as error:
        hint = "; for another size than the published model pass --config" if published else ""
        raise InputError(f"{error}{hint}") from error
    for name, spec in source.specs.items():
        if spec.dtype not in _DTYPES:
            raise InputError(
                f"{source.file_of(name)}: tensor {shown(name)} is {spec.dtype}; expected one of "
                f"{', '.join(_DTYPES)}"
            )
    if {"F16", "BF16"} <= {spec.dtype for spec in source.specs.values()}:
        raise InputError(
            f"{source.label}: float16 and bfloat16 in one checkpoint, which nobody saves so; "
            "one of them must be a mistaken dtype"
        )
    return plan


def _target_specs(
    source: TensorSource, plan: NamePlan, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, TensorSpec]:
    specs = {}
    for target, pairs in plan.leaves.items():
        kinds = {source.specs[pair.source].dtype for pair in pairs}
        if len(kinds) != 1:
            raise InputError(
                f"{source.label}: the layers of {target} mix dtypes {', '.join(sorted(kinds))}; "
                "store all layers in one dtype"
            )
        specs[target] = TensorSpec(shapes[target], kinds.pop())
    return specs


def _check_space(out: Path, needed: int) -> None:
    try:
        free = shutil.disk_usage(out.parent).free
    except OSError as error:
        raise InputError(f"{out}: cannot be written, {out.parent}: {error.strerror}") from error
    if free < needed + (16 << 20):
        raise InputError(
            f"{out}: needs {needed / 1e9:.2f} GB but {out.parent} has {free / 1e9:.2f} GB free"
        )


def _write_parts(
    source: TensorSource, partial: Path, plan: NamePlan, targets: Mapping[str, TensorSpec]
) -> tuple[dict[str, FileRecord], dict[str, Part]]:
    files, parts = {}, {}
    for part in dict.fromkeys(target.partition("/")[0] for target in targets):
        mine = {t: spec for t, spec in targets.items() if t.partition("/")[0] == part}
        specs = {target: mine[target] for target in data_order(mine)}
        path = partial / f"{part}.safetensors"
        with SafetensorsWriter(path, specs, {"format": "lite3r_jax"}) as writer:
            for target in specs:
                for pair in plan.leaves[target]:
                    tensor = _read_finite(source, pair.source)
                    writer.write(target, contiguous(forward(pair.transform, tensor)))
        files[path.name] = _record(writer)
        parts[part] = Part(
            tensors=sum(len(plan.leaves[target]) for target in mine),
            leaves=len(mine),
            parameters=sum(spec.size for spec in mine.values()),
        )
    return files, parts


def _write_rest(
    source: TensorSource, partial: Path, plan: NamePlan, names: NameMap
) -> dict[str, FileRecord]:
    """Writes what only `export` needs: skipped tensors, and the header as the source had it."""
    files = {}
    constants = {skip.source: skip.values for skip in names.skips if skip.values is not None}
    if plan.skipped:
        path = partial / CARRIED_FILE
        specs = {name: source.specs[name] for name in plan.skipped}
        specs = {name: specs[name] for name in data_order(specs)}
        with SafetensorsWriter(path, specs, {"format": "pt"}) as writer:
            for name in specs:
                tensor = _read_finite(source, name)
                if name in constants:
                    _check_constant(source, name, tensor, constants[name])
                writer.write(name, tensor)
        files[CARRIED_FILE] = _record(writer)
    if isinstance(source, SafetensorsFile):
        path = partial / SOURCE_HEADER_FILE
        files[SOURCE_HEADER_FILE] = write_file(path, source.header[8:])
    return files


def _read_finite(source: TensorSource, name: str) -> np.ndarray:
    tensor = source.read(name)
    if count := count_not_finite(tensor):
        raise InputError(
            f"{source.file_of(name)}: tensor {shown(name)} holds {count} NaN or infinite values of "
            f"{tensor.size}; such weights are of no use"
        )
    return tensor


def _check_constant(
    source: TensorSource, name: str, tensor: np.ndarray, values: tuple[float, ...]
) -> None:
    """Refuses a tensor, skipped because its values are known, that holds other values."""
    held = tensor.astype(np.float32).reshape(-1)
    if not np.allclose(held, values, rtol=1e-2 if tensor.dtype.itemsize == 2 else 1e-5):
        raise InputError(
            f"{source.file_of(name)}: tensor {shown(name)} holds {held.tolist()}, but the model"
            f" here has {list(values)} in its place; this checkpoint is of another model"
        )


def _record(writer: SafetensorsWriter) -> FileRecord:
    assert writer.record is not None
    return writer.record


def _states(source: TensorSource) -> list[tuple[int, int]]:
    try:
        stats = [os.stat(path) for path in source.files]
    except OSError as error:
        raise InputError(f"{source.label}: cannot be read ({error.strerror})") from error
    return [(stat.st_size, stat.st_mtime_ns) for stat in stats]


@contextmanager
def _all_or_nothing(out: Path, overwrite: bool) -> Iterator[Path]:
    """Gives a directory that durably becomes `out` if the block succeeds and else vanishes."""
    with atomic_write(out, overwrite=overwrite) as partial:
        partial.mkdir()
        yield partial
        sync_directory(partial)
    sync_directory(out.parent)


def tool() -> str:
    """Returns the program and versions that write weights, for manifests."""
    from lite3r_jax import __version__

    return f"lite3r_jax {__version__}, safetensors {safetensors.__version__}"
