"""Writes a checkpoint of random numbers under upstream names, to measure without published weights.

    python -m tools.benchmark.random_checkpoint vggt OUT.safetensors [--config FILE] [--seed 0]

Names and shapes come from the weight map, read backwards over the model, so that this is also the
proof that the map is complete: for VGGT-1B it must give 1,797 tensors and 1,256,537,516 parameters.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lite3r_jax.backbones.base import backbone_names, get_backbone
from lite3r_jax.errors import InputError
from lite3r_jax.weights import strict_json
from lite3r_jax.weights.abstract import abstract_model
from lite3r_jax.weights.safetensors_file import TensorSpec
from lite3r_jax.weights.safetensors_writer import FileRecord, SafetensorsWriter, data_order

# Published model -> (tensors, parameters) of its checkpoint.
PUBLISHED = {"vggt": (1797, 1_256_537_516), "da3": (637, 410_941_767), "pi3": (1210, 958_696_738)}


def write_random(backbone: str, out: Path, config: dict | None = None, seed: int = 0) -> FileRecord:
    """Writes a checkpoint of random numbers under upstream names, one tensor at a time.

    Weights are N(0, 1/fan_in), norms 1, biases 0, LayerScale 1 in the encoder and 0.01 elsewhere
    (as upstream initializes them), tokens and position embedding N(0, 0.02^2), every field of view
    1 radian: every stage then works on values of ordinary size.

    Args:
        backbone: registry name.
        out: .safetensors file, replaced if it exists.
        config: JSON form; None for the published model, whose size is then asserted.
        seed: equal seeds give equal files.

    Raises:
        InputError: a config that cannot be built; `out` cannot be written.
    """
    entry = get_backbone(backbone)
    settings = entry.default_config if config is None else entry.config_from_json(config)
    shapes = abstract_model(entry, settings, heads=entry.heads).shapes
    names = entry.checkpoint.of(settings).names(settings)
    upstream = names.upstream_shapes(shapes)
    size = (len(upstream), sum(math.prod(shape) for shape in upstream.values()))
    if config is None and size != PUBLISHED[backbone]:
        raise AssertionError(f"{backbone}: expected {PUBLISHED[backbone]} tensors, got {size}")
    specs = {name: TensorSpec(shape, "F32") for name, shape in upstream.items()}
    specs = {name: specs[name] for name in data_order(specs)}
    rng = np.random.default_rng(seed)
    constants = {skip.source: skip.values for skip in names.skips if skip.values is not None}
    with SafetensorsWriter(out, specs, {"format": "pt"}) as writer:
        for name, spec in specs.items():
            if name in constants:
                values = np.asarray(constants[name], np.float32).reshape(spec.shape)
            else:
                values = _values(name, spec.shape, rng)
            writer.write(name, values)
    assert writer.record is not None
    return writer.record


def _values(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    leaf = name.rpartition(".")[2]
    if name == "camera_head.pose_branch.fc2.bias":
        # Added up over four iterations. A random field of view would often be clipped at 0.
        return np.array([0, 0, 0, 0, 0, 0, 0, 0.25, 0.25], np.float32)
    if name.endswith("cam_dec.fc_fov.0.bias"):
        return np.ones(shape, np.float32)
    if leaf == "gamma":
        encoder = name.startswith("encoder.") or ".patch_embed." in name or ".pretrained." in name
        return np.full(shape, 1.0 if encoder else 0.01, np.float32)
    if leaf in ("bias", "in_proj_bias"):
        return np.zeros(shape, np.float32)
    if leaf == "weight" and len(shape) == 1:
        return np.ones(shape, np.float32)
    values = rng.standard_normal(shape, np.float32)
    if leaf not in ("weight", "in_proj_weight"):
        values *= 0.02
        return values
    # The transposed convolutions have the input first; kernel and stride are equal there, so that
    # each output sees one kernel position.
    deconv = "resize_layers.0" in name or "resize_layers.1" in name
    values *= 1 / math.sqrt(shape[0] if deconv else math.prod(shape[1:]))
    if name == "camera_head.pose_branch.fc2.weight":
        values[7:] = 0
    return values


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the checkpoint that the command line names; returns 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(description="Write a checkpoint of random numbers.")
    parser.add_argument("backbone", choices=backbone_names())
    parser.add_argument("out", type=Path)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    try:
        config = None if given.config is None else strict_json.read_object(given.config)
        record = write_random(given.backbone, given.out, config, given.seed)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{given.out}  {record.size:,} bytes  sha256 {record.sha256}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
