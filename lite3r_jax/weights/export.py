"""Exports a directory of weights to one safetensors file under upstream names, bit for bit."""

import os
from pathlib import Path

from lite3r_jax.backbones.base import get_backbone
from lite3r_jax.errors import InputError
from lite3r_jax.name_map import NameMap, Pair, Transform, inverse
from lite3r_jax.weights import strict_json
from lite3r_jax.weights.convert import contiguous
from lite3r_jax.weights.converted import ConvertedWeights
from lite3r_jax.weights.manifest import CARRIED_FILE, CONFIG_FILE, SOURCE_HEADER_FILE
from lite3r_jax.weights.safetensors_file import SafetensorsFile, TensorSpec, parse_header
from lite3r_jax.weights.safetensors_writer import FileRecord, SafetensorsWriter, data_order


def export(directory: Path, out: Path, *, overwrite: bool = False) -> FileRecord:
    """Writes the upstream checkpoint that a directory of weights was converted from.

    Every tensor is bit-identical to the source's. If the source was a single safetensors file, the
    whole file is, and its SHA-256 is compared with the one recorded at conversion.

    Args:
        directory: made by `convert`.
        out: the .safetensors file to write.
        overwrite: replace `out` if it exists.

    Returns:
        Size and SHA-256 of the file.

    Raises:
        InputError: the directory is damaged; `out` exists or cannot be written.
    """
    out = Path(os.path.abspath(out))
    if out.suffix != ".safetensors":
        raise InputError(f"{out}: expected a name that ends in .safetensors")
    if out.is_dir() or (os.path.lexists(out) and not overwrite):
        raise InputError(f"{out}: exists; choose another name or add --overwrite")
    weights = ConvertedWeights(directory)
    if Path(os.path.abspath(directory)) in out.parents:
        raise InputError(f"{out}: inside the converted weights; choose another directory")
    weights.verify(weights.manifest.files)
    entry = get_backbone(weights.manifest.backbone)
    config = entry.config_from_json(strict_json.read_object(directory / CONFIG_FILE))
    names = entry.checkpoint.of(config).names(config)
    parts = [f"{part}.safetensors" for part in weights.manifest.parts]
    if CARRIED_FILE in weights.manifest.files:
        parts.append(CARRIED_FILE)
    files = [weights.open(name) for name in parts]
    try:
        places = _places(files, names)
        record = _write(weights, places, out)
    finally:
        for file in files:
            file.close()
    return record


def _places(
    files: list[SafetensorsFile], names: NameMap
) -> dict[str, tuple[SafetensorsFile, Pair, TensorSpec]]:
    """Returns, by upstream name, a tensor's file, its pair of names, and its upstream spec."""
    places = {}
    for file in files:
        for here, spec in file.specs.items():
            if file.path.name == CARRIED_FILE:
                places[here] = (file, Pair(here, here, None, Transform.IDENTITY), spec)
                continue
            for pair, shape in names.to_upstream(here, spec.shape):
                places[pair.source] = (file, pair, TensorSpec(shape, spec.dtype))
    return places


def _write(
    weights: ConvertedWeights,
    places: dict[str, tuple[SafetensorsFile, Pair, TensorSpec]],
    out: Path,
) -> FileRecord:
    specs = {name: spec for name, (_, _, spec) in places.items()}
    header = None
    if SOURCE_HEADER_FILE in weights.manifest.files:
        path = weights.path / SOURCE_HEADER_FILE
        text = path.read_bytes()
        entries = parse_header(text, path)[1]
        if {name: spec for name, (spec, _) in entries.items()} != specs:
            raise InputError(f"{path}: does not describe these weights; convert again")
        header, order = len(text).to_bytes(8, "little") + text, list(entries)
    else:
        order = data_order(specs)
    specs = {name: specs[name] for name in order}
    with SafetensorsWriter(out, specs, {"format": "pt"}, header) as writer:
        for name in specs:
            file, pair, _ = places[name]
            if pair.index is None:
                tensor = file.read(pair.target)
            else:
                tensor = file.read_row(pair.target, pair.index)
            writer.write(name, contiguous(inverse(pair.transform, tensor)))
        if header is not None and [writer.so_far] != list(weights.manifest.source_files.values()):
            raise InputError(f"{out}: would differ from the converted file; convert again")
    assert writer.record is not None
    return writer.record
