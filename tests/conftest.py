"""Settings of the whole suite, the golden models, and the parity record.

`make parity` writes gate and measured error of every comparison with the golden arrays into
docs/parity.md, and fails if one was not compared.
"""

import functools
import gc
import json
import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental.compilation_cache import compilation_cache
from safetensors.numpy import load_file, save_file

from lite3r_jax.attention.presets import parse_plan
from lite3r_jax.backbones.base import BackboneEntry, Prediction, register, unregister
from lite3r_jax.backbones.config_json import to_json
from lite3r_jax.backbones.model import BackboneModel, RoleSize
from lite3r_jax.cli.convert import main as convert_command
from lite3r_jax.distillation.checkpoint import StudentManifest, describe_teacher, write_student
from lite3r_jax.distillation.surgery import variables
from lite3r_jax.distillation.trainable import trained_paths
from lite3r_jax.name_map import Checkpoint, NameMap
from lite3r_jax.weights.abstract import abstract_model
from lite3r_jax.weights.convert import convert
from lite3r_jax.weights.load import load, resolve
from lite3r_jax.weights.safetensors_file import open_safetensors
from lite3r_jax.weights.save import save
from tests.contracts.pocket import ENTRY, NAMES

# A job in the background may be born with interrupts ignored or blocked, which its tests and their
# children would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

# Parity gates are set for full float32 products; GPUs would take TF32.
jax.config.update("jax_default_matmul_precision", "highest")

# Traces leave many objects that stay; going through them often is a tenth of the time of the tests.
gc.set_threshold(200_000, 50, 50)

GOLDEN = Path(__file__).parent / "golden" / "vggt"
GOLDEN_DA3 = GOLDEN.parent / "da3"
GOLDEN_PI3 = GOLDEN.parent / "pi3"

POCKET_CONFIG = """
from lite3r_jax.experiment import Experiment, to_config

def get_config():
    return to_config(Experiment(backbone="pocket"))
"""


@dataclass(frozen=True)
class ParityRow:
    group: str
    name: str
    shape: tuple[int, ...]
    gate: float
    error: float
    relative: bool


_rows = pytest.StashKey[list[ParityRow]]()


def pytest_addoption(parser):
    parser.addoption("--parity-table", metavar="FILE", help="write docs/parity.md there")


def pytest_configure(config):
    config.stash[_rows] = []
    if config.getoption("markexpr") in ("not slow", "slow and not parity and not optimized"):
        _compile_quickly()


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items):
    for item in items:
        if "parity" in getattr(item, "fixturenames", ()):
            item.add_marker("parity")


def _compile_quickly() -> None:
    """Spend little time in XLA, here and in child processes, before any device is asked for.

    Most of the time of the tests would be the compilation of programs that run a few times on
    little. What is compared with golden arrays (marker `parity`) runs a second time by `make
    test-slow`, compiled as users do, and so do slow tests marked `optimized`.
    """
    jax.config.update("jax_disable_most_optimizations", True)
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    if jax.__version_info__ < (0, 11):  # later versions have no other code generator
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_use_fusion_emitters=false".strip()


@pytest.fixture
def parity(request):
    """Check `got` against golden `want` by the maximum absolute error, and record it.

    Called as parity(group, name, got, want, gate): group is the golden file without its suffix
    (of Depth Anything 3 and pi^3 with da3/ or pi3/ before it) and name the array, perhaps with more
    behind it in brackets or after a comma. With `relative=True` the error is divided by the largest
    magnitude of `want`.
    """

    def check(group, name, got, want, gate, *, relative=False):
        got, want = np.asarray(got), np.asarray(want)
        assert got.shape == want.shape, f"{name}: {got.shape} is not {want.shape}"
        assert np.isfinite(got).all(), f"{name}: not finite"
        error = float(np.abs(got.astype(np.float64) - want.astype(np.float64)).max(initial=0))
        if relative:
            error /= float(np.abs(want).max())
        request.config.stash[_rows].append(
            ParityRow(group, name, want.shape, gate, error, relative)
        )
        assert error <= gate, f"{group} {name}: error {error:.2e} above the gate {gate:.0e}"

    return check


# Arrays that go into the computations that the others came out of; those of every file of a folder
# under its name.
_INPUTS = {
    "da3": r"in_.*|pos_(local|global)|eps",
    "fastvggt": r"\w+/([xqkv]|[ab]_idx|src_idx|protected_idx|argmax_margin)",
    "speed3r": r"w/.*|(x|pos)(_raster)?|objective_weight",
    "pi3/inputs": r".*",
    "pi3/geometry": r"orth_(in|grad_weight|unique)|shuffle_(tokens|weight|bias)"
    r"|rope_(tokens|pos)|edge_(points|mask)|normals_mask|se3",
    "pi3/preprocess/preprocess": r"pixel_limit",
    "pi3/pi3x_modules": r"\w+/(w/.*|in|query|context|pos)",
    "inputs": r".*",
    "modules/camera": r"camera_tokens",
    "modules/dpt": r"tokens_\d|act_in",
    "modules/loss": r"batch_.*|pred_.*|mask_.*|norm_cam_points_in",
    "modules/pose_geometry": r"extrinsics|intrinsics|image_size_hw|raw_pose_enc|rot"
    r"|quat_xyzw_unnormalised|unproj_(depth|extrinsics|intrinsics)|proj_points|tracks"
    r"|world_points_batch",
    "modules/posembed": r"pos_embed_\d+",
    "modules/rope": r"(tokens|positions)_\d",
    "modules/track": r"fmaps|query_points|emb2d_xy|sampler_in|sampler_coords",
}


def pytest_sessionfinish(session, exitstatus):
    file = session.config.getoption("--parity-table")
    if not file or exitstatus:
        return
    rows = session.config.stash[_rows]
    if missing := _not_compared(rows):
        pytest.exit(f"golden arrays that no test compared: {', '.join(missing)}", returncode=1)
    Path(file).write_text(_table(rows))


def _not_compared(rows: list[ParityRow]) -> list[str]:
    done = {(row.group, re.split(r"[\[,]", row.name)[0]) for row in rows}
    missing = []
    for path in sorted(GOLDEN.parent.rglob("*.npz")):
        group = path.relative_to(GOLDEN.parent).with_suffix("").as_posix().removeprefix("vggt/")
        inputs = _INPUTS.get(group, _INPUTS.get(group.partition("/")[0], ""))
        with np.load(path) as arrays:
            results = {n for n in arrays.files if not re.fullmatch(inputs, n)}
        missing += [f"{group}/{name}" for name in sorted(results) if (group, name) not in done]
    return missing


def _table(rows: list[ParityRow]) -> str:
    head = f"""\
# Parity with the original

Golden arrays were made by running the original PyTorch code on CPU in float32 (see the README.md of
`tests/golden/vggt`, `tests/golden/da3` and `tests/golden/pi3`: tiny configurations of the full
architectures, random weights). Groups that begin with da3/ are of Depth Anything 3, pi3/ of pi^3,
fastvggt/ of the token merging of FastVGGT, speed3r/ of the attention of Speed3R (written anew in
PyTorch, since its kernels need a GPU), all others of VGGT. Every comparison below is a test; gates
are at or under those recommended there from measured float noise. Error is the largest absolute
difference, or, where marked "rel.", that difference over the largest magnitude of the golden array.

{len(rows)} comparisons, made by `make parity` (which fails if a golden array is compared nowhere)
with jax {jax.__version__} on {jax.default_backend()}.

| group | array | shape | gate | error |
|---|---|---|---|---|
"""
    order = sorted(rows, key=lambda r: (r.group, r.name))
    return head + "".join(
        f"| {r.group} | {r.name} | {list(r.shape)} | {r.gate:.0e}{' rel.' * r.relative} | "
        f"{r.error:.1e} |\n"
        for r in order
    )


@pytest.fixture(scope="session")
def golden():
    """Get the arrays of tests/golden/vggt/NAME.npz by that name."""

    @functools.cache
    def get(name: str) -> dict[str, np.ndarray]:
        with np.load(GOLDEN / f"{name}.npz") as file:
            return dict(file)

    return get


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    return GOLDEN


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory) -> Path:
    """The golden checkpoint, converted."""
    out = tmp_path_factory.mktemp("weights") / "tiny"
    config = json.loads((GOLDEN / "config.json").read_text())
    del config["param_count"]  # which would build the model once more, to count
    with open_safetensors(GOLDEN / "model.safetensors") as source:
        convert(source, out, backbone="vggt", config=config)
    return out


@pytest.fixture(scope="session")
def bundled_student(tmp_path_factory) -> Path:
    """A student of the model of the package, with random numbers in place of training."""
    model = load("vggt-tiny", heads=("camera", "depth"), plan=parse_plan("sla_global(block=4)"))
    known, rng = variables(model), np.random.default_rng(0)
    arrays = {
        path: 1e-2 * rng.standard_normal(known[path][1].shape, np.float32)
        for path in trained_paths(model, "strategy")
    }
    directory, remedy = resolve("vggt-tiny")
    parts = sorted({path.partition("/")[0] for path in known})
    teacher = describe_teacher(directory, parts, remedy)[1]
    plan = parse_plan("sla_global(block=4)")
    manifest = StudentManifest("vggt", ("camera", "depth"), plan, "strategy", 0, "default", teacher)
    folder = tmp_path_factory.mktemp("distilled") / "student"
    write_student(folder, manifest, arrays)
    return folder


@pytest.fixture(scope="session")
def tiny_vggt(tiny_dir):
    """The golden model in float32, all heads."""
    return load(tiny_dir)


@pytest.fixture(scope="session")
def golden_da3():
    """Get the arrays of tests/golden/da3/NAME.npz by that name."""

    @functools.cache
    def get(name: str) -> dict[str, np.ndarray]:
        with np.load(GOLDEN_DA3 / f"{name}.npz") as file:
            return dict(file)

    return get


@pytest.fixture(scope="session")
def tiny_da3_json() -> dict:
    """Sizes of the golden Depth Anything 3, whose encoder has no name upstream."""
    data = json.loads((GOLDEN_DA3 / "config.json").read_text())
    net, tiny, head = data["config"]["net"], data["tiny_backbone"], data["config"]["head"]
    sizes = {key: tiny[key] for key in ("embed_dim", "depth", "num_heads")}
    sizes |= {key: net[key] for key in ("alt_start", "out_layers")}
    return sizes | {key: head[key] for key in ("features", "out_channels")}


@pytest.fixture(scope="session")
def tiny_da3_dir(tmp_path_factory, tiny_da3_json) -> Path:
    """The golden checkpoint of Depth Anything 3, converted."""
    out = tmp_path_factory.mktemp("weights") / "tiny_da3"
    with open_safetensors(GOLDEN_DA3 / "weights.safetensors") as source:
        convert(source, out, backbone="da3", config=tiny_da3_json)
    return out


@pytest.fixture(scope="session")
def tiny_da3(tiny_da3_dir):
    """The golden Depth Anything 3 in float32, all heads."""
    return load(tiny_da3_dir)


@pytest.fixture(scope="session")
def golden_pi3():
    """Get the arrays of tests/golden/pi3/NAME.npz by that name."""

    @functools.cache
    def get(name: str) -> dict[str, np.ndarray]:
        with np.load(GOLDEN_PI3 / f"{name}.npz") as file:
            return dict(file)

    return get


@pytest.fixture(scope="session")
def tiny_pi3_json() -> dict:
    """Sizes of the golden pi^3."""
    data = json.loads((GOLDEN_PI3 / "config.json").read_text())
    del data["parameters"]  # which would build the model once more, to count
    return data


@pytest.fixture(scope="session")
def tiny_pi3_dir(tmp_path_factory, tiny_pi3_json) -> Path:
    """The golden checkpoint of pi^3, converted."""
    out = tmp_path_factory.mktemp("weights") / "tiny_pi3"
    with open_safetensors(GOLDEN_PI3 / "model.safetensors") as source:
        convert(source, out, backbone="pi3", config=tiny_pi3_json)
    return out


@pytest.fixture(scope="session")
def pinhole_pi3_dir(tmp_path_factory, tiny_pi3_json) -> Path:
    """The golden pi^3 with rays that spread within every patch, so that cameras fit to them.

    Those of the golden weights are random, and their focal lengths not positive.
    """
    folder = tmp_path_factory.mktemp("weights")
    tensors = load_file(GOLDEN_PI3 / "model.safetensors")
    row, column = np.mgrid[:14, :14] - 6.5
    rays = np.stack([column, row, np.zeros((14, 14))]).reshape(-1)
    tensors["point_head.proj.weight"] *= 1e-3
    tensors["point_head.proj.bias"] = (0.05 * rays).astype(np.float32)
    save_file(tensors, folder / "published.safetensors")
    with open_safetensors(folder / "published.safetensors") as source:
        convert(source, folder / "converted", backbone="pi3", config=tiny_pi3_json)
    return folder / "converted"


@pytest.fixture(scope="session")
def tiny_pi3(tiny_pi3_dir):
    """The golden pi^3 in float32, all heads."""
    return load(tiny_pi3_dir)


@dataclass(frozen=True)
class FakeConfig:
    patch_size: int = 14


class FakeModel(BackboneModel):
    """A model that compiles in no time.

    Depth is 1 + brightness, cameras step to the right, confidence falls from left to right.
    """

    parts: ClassVar = {head: f"{head}_head" for head in ("camera", "depth", "point")}

    def __init__(
        self, config=FakeConfig(), *, heads=("camera", "depth"), plan=None, dtype=jnp.float32,
        param_dtype=jnp.float32, rngs=None,
    ):  # fmt: skip
        super().__init__(config, heads=heads, plan=plan, dtype=dtype)
        self.one = nnx.Param(jnp.ones((), param_dtype))

    def roles(self):
        return {"global": RoleSize(1, 8)}

    def operations(self, views, grid):
        return {"global": {"layers": 10**9}}

    def __call__(self, images: jax.Array, *, frame_chunk: int = 1):
        del frame_chunk
        b, s, h, w, _ = images.shape
        depth = self.one[...] + images.mean(-1, keepdims=True)
        pose = jnp.tile(jnp.eye(3, 4), (b, s, 1, 1)).at[..., 0, 3].set(-0.1 * jnp.arange(s))
        camera = jnp.array([[w, 0, w / 2], [0, w, h / 2], [0, 0, 1]], jnp.float32)
        prediction = Prediction(
            extrinsics=pose,
            intrinsics=jnp.tile(camera, (b, s, 1, 1)),
            depth=depth,
            depth_conf=jnp.broadcast_to(jnp.linspace(2, 1, w), (b, s, h, w)),
            world_points=jnp.tile(depth, 3) if "point" in self.heads else None,
            world_points_conf=depth[..., 0] if "point" in self.heads else None,
        )
        return prediction, {}


@pytest.fixture
def compiled_once(tmp_path_factory, monkeypatch):
    """Keeps compiled programs for a test that compiles them again, here or in child processes."""
    folder = str(tmp_path_factory.mktemp("compiled"))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", folder)
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", folder)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


@pytest.fixture(scope="session")
def fake_model():
    """FakeModel, a model that compiles in no time, for tests of what is around models."""
    return FakeModel


@pytest.fixture(scope="session")
def fake_dir(tmp_path_factory):
    """Weights of a FakeModel, which is registered as the backbone "fake"."""
    register(
        BackboneEntry(
            "fake", FakeModel, FakeConfig(), lambda data: FakeConfig(**data), to_json,
            Checkpoint("fake", lambda config: NameMap({}, ()), "fake", {}),
        )
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("weights") / "fake"
    save(FakeModel(heads=tuple(FakeModel.parts)), folder, backbone="fake")
    yield folder
    unregister("fake")


@pytest.fixture(scope="module")
def pocket():
    """The backbone of contracts/pocket.py, registered as long as a module of tests runs."""
    register(ENTRY)
    yield ENTRY
    unregister("pocket")


@pytest.fixture(scope="module")
def upstream_pocket(pocket):
    """What its authors would have published: names and layouts of PyTorch."""
    shapes = NAMES.upstream_shapes(
        abstract_model(pocket, pocket.default_config, heads=pocket.heads).shapes
    )
    rng = np.random.default_rng(0)
    return {name: 0.2 * rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def pocket_weights(upstream_pocket, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pocket")
    save_file(upstream_pocket, folder / "published.safetensors")
    source, out = str(folder / "published.safetensors"), str(folder / "converted")
    assert convert_command(["pocket", source, out]) == 0
    return Path(out)


@pytest.fixture(scope="module")
def pocket_recipe(tmp_path_factory):
    """A config file that names the backbone and nothing else."""
    path = tmp_path_factory.mktemp("recipe") / "pocket.py"
    path.write_text(POCKET_CONFIG)
    return path


@pytest.fixture(scope="session")
def tiny_images(golden):
    """[2, 3, 56, 84, 3] of the golden run."""
    return np.ascontiguousarray(np.moveaxis(golden("inputs")["images"], 2, -1))
