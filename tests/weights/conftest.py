"""Checkpoints to convert: the golden tiny VGGT, and a toy with one tensor of every layout."""

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from lite3r_jax.backbones.base import BackboneEntry, register, unregister
from lite3r_jax.backbones.config_json import from_json
from lite3r_jax.name_map import Checkpoint, NameMap, Skip, TensorRule, Transform
from lite3r_jax.weights import convert as convert_module
from lite3r_jax.weights import load as load_module
from lite3r_jax.weights.abstract import abstract_model
from lite3r_jax.weights.convert import convert
from lite3r_jax.weights.safetensors_file import DTYPE_NAMES, TensorSpec, open_safetensors
from lite3r_jax.weights.safetensors_writer import SafetensorsWriter, data_order

GOLDEN = Path(__file__).parents[1] / "golden" / "vggt"
KINDS = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


@dataclass(frozen=True)
class ToyConfig:
    width: int = 3


class _Leaf(nnx.Module):
    def __init__(self, dtype, **shapes):
        for name, shape in shapes.items():
            setattr(self, name, nnx.Param(jnp.zeros(shape, dtype)))


class _Trunk(nnx.Module):
    def __init__(self, width, dtype):
        self.token = nnx.Param(jnp.zeros((1, width), dtype))
        self.norm = _Leaf(dtype, scale=(width,), bias=(width,))
        self.blocks = _Leaf(dtype, kernel=(2, width, 4), bias=(2, 4))


class _Head(nnx.Module):
    def __init__(self, dtype):
        self.patch = _Leaf(dtype, kernel=(2, 1, 3, 2))
        self.mix = _Leaf(dtype, kernel=(3, 2))
        self.up = _Leaf(dtype, kernel=(2, 2, 2, 3))


class Toy(nnx.Module):
    parts: ClassVar = {"dense": "head"}

    def __init__(self, config, *, heads, plan, dtype, param_dtype, rngs):
        self.trunk = _Trunk(config.width, param_dtype)
        if "dense" in heads:
            self.head = _Head(param_dtype)


CHECKPOINT = Checkpoint(
    title="toy",
    names=lambda config: NameMap(
        fields={"affine": {"weight": "scale", "bias": "bias"}},
        rules=(
            TensorRule("trunk.token", "trunk/token"),
            TensorRule("trunk.norm.{affine}", "trunk/norm/{affine}"),
            TensorRule(
                "trunk.blocks.{i}.weight", "trunk/blocks/kernel", Transform.LINEAR, stack="i"
            ),
            TensorRule("trunk.blocks.{i}.bias", "trunk/blocks/bias", stack="i"),
            TensorRule("head.patch.weight", "head/patch/kernel", Transform.CONV),
            TensorRule("head.mix.weight", "head/mix/kernel", Transform.CONV1X1),
            TensorRule("head.up.weight", "head/up/kernel", Transform.DECONV),
        ),
        skips=(Skip("trunk.mask", "nothing reads it", "trunk/token", (1,)),),
    ),
    trunk="trunk",
    heads={"dense": "head"},
)
BACKBONE = BackboneEntry(
    name="toy",
    model=Toy,
    default_config=ToyConfig(),
    config_from_json=lambda data: from_json(ToyConfig, data, "config"),
    config_to_json=asdict,
    checkpoint=CHECKPOINT,
)
SPECS = {
    "trunk.token": ("F32", (1, 3)),
    "trunk.mask": ("F32", (3,)),
    "trunk.norm.weight": ("F32", (3,)),
    "trunk.norm.bias": ("F32", (3,)),
    "trunk.blocks.0.weight": ("F32", (4, 3)),
    "trunk.blocks.0.bias": ("BF16", (4,)),
    "trunk.blocks.1.weight": ("F32", (4, 3)),
    "trunk.blocks.1.bias": ("BF16", (4,)),
    "head.patch.weight": ("BF16", (2, 3, 2, 1)),
    "head.mix.weight": ("BF16", (2, 3, 1, 1)),
    "head.up.weight": ("F32", (2, 3, 2, 2)),
}


def _expected(source: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the toy's parameters must be, by index arithmetic instead of the map."""
    stack = [source["trunk.blocks.0.weight"], source["trunk.blocks.1.weight"]]
    bias = [source["trunk.blocks.0.bias"], source["trunk.blocks.1.bias"]]
    return {
        "trunk/token": source["trunk.token"],
        "trunk/norm/scale": source["trunk.norm.weight"],
        "trunk/norm/bias": source["trunk.norm.bias"],
        "trunk/blocks/kernel": np.einsum("loi->lio", np.stack(stack)),
        "trunk/blocks/bias": np.stack(bias),
        "head/patch/kernel": _permuted(source["head.patch.weight"], "oihw->hwio"),
        "head/mix/kernel": _permuted(source["head.mix.weight"], "oixy->xyio")[0, 0],
        "head/up/kernel": _permuted(source["head.up.weight"], "iohw->ihwo"),
    }


def _permuted(array: np.ndarray, axes: str) -> np.ndarray:
    before, after = axes.split("->")
    result = np.empty([array.shape[before.index(a)] for a in after], array.dtype)
    for index in np.ndindex(array.shape):
        result[tuple(index[before.index(a)] for a in after)] = array[index]
    return result


def _read_plain(path: Path) -> dict[str, np.ndarray]:
    """An independent reader: no check beyond what it needs to read."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        flat = np.frombuffer(data[begin:end], KINDS[entry["dtype"]])
        tensors[name] = flat.reshape(entry["shape"])
    return tensors


def _write(path: Path, tensors: Mapping[str, np.ndarray], metadata=None) -> Path:
    specs = {n: TensorSpec(t.shape, DTYPE_NAMES[t.dtype]) for n, t in tensors.items()}
    specs = {name: specs[name] for name in data_order(specs)}
    with SafetensorsWriter(path, specs, metadata) as writer:
        for name in specs:
            writer.write(name, tensors[name])
    return path


@pytest.fixture(scope="session")
def read_plain() -> Callable[[Path], dict[str, np.ndarray]]:
    return _read_plain


@pytest.fixture(scope="session")
def write_tensors() -> Callable[..., Path]:
    return _write


@pytest.fixture(scope="session")
def golden_file() -> Path:
    return GOLDEN / "model.safetensors"


@pytest.fixture(scope="session")
def golden_config() -> dict:
    config = json.loads((GOLDEN / "config.json").read_text())
    # Checking it builds the whole model once more; the test of the published counts covers it.
    del config["param_count"]
    return config


@pytest.fixture(scope="session")
def golden_weights(tmp_path_factory, golden_file, golden_config) -> Path:
    """The converted golden checkpoint; not to be changed."""
    out = tmp_path_factory.mktemp("golden") / "weights"
    source = open_safetensors(golden_file)
    convert(source, out, backbone="vggt", config=golden_config)
    source.close()
    return out


@dataclass(frozen=True)
class ToyKit:
    """The toy backbone, registered for one test."""

    tensors: dict[str, np.ndarray]
    specs: Mapping[str, tuple[str, tuple[int, ...]]]
    expected: Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]

    def convert(self, path: Path, out: Path, **options):
        source = open_safetensors(path)
        try:
            return convert(source, out, backbone="toy", **options)
        finally:
            source.close()


@pytest.fixture
def toy(monkeypatch) -> Iterator[ToyKit]:
    rng = np.random.default_rng(0)
    tensors = {
        name: rng.standard_normal(shape).astype(KINDS[dtype])
        for name, (dtype, shape) in SPECS.items()
    }
    # Tracing once and not a thousand times; what is traced is not under test here.
    traced = {}

    def traced_once(backbone, config, **kinds):
        key = (config, repr(sorted(kinds.items())))
        if key not in traced:
            traced[key] = abstract_model(backbone, config, **kinds)
        return traced[key]

    register(BACKBONE)
    for module in (convert_module, load_module):
        monkeypatch.setattr(module, "abstract_model", traced_once)
    yield ToyKit(tensors, SPECS, _expected)
    unregister("toy")


@pytest.fixture
def toy_file(toy, tmp_path) -> Path:
    return _write(tmp_path / "toy.safetensors", toy.tensors, {"format": "pt"})
