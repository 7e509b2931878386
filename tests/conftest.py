"""Settings of the whole suite, the golden models, and the parity record.

`make parity` writes gate and measured error of every comparison with the golden arrays into
docs/parity.md, and fails if one was not compared.
"""

import functools
import gc
import json
import re
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lite3r_jax.backbones.base import Prediction
from lite3r_jax.weights.convert import convert
from lite3r_jax.weights.load import load
from lite3r_jax.weights.safetensors_file import open_safetensors

# Parity gates are set for full float32 products; GPUs would take TF32.
jax.config.update("jax_default_matmul_precision", "highest")

# Traces leave many objects that stay; going through them often is a tenth of the time of the tests.
gc.set_threshold(200_000, 50, 50)

GOLDEN = Path(__file__).parent / "golden" / "vggt"
GOLDEN_DA3 = GOLDEN.parent / "da3"


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


@pytest.fixture
def parity(request):
    """Check `got` against golden `want` by the maximum absolute error, and record it.

    Called as parity(group, name, got, want, gate): group is the golden file without its suffix
    (for Depth Anything 3 with da3/ before it) and name the array, perhaps with more behind it in
    brackets or after a comma. With `relative=True` the error is divided by the largest magnitude of
    `want`.
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


# Arrays that go into the computations that the others came out of.
_INPUTS = {
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
# The same in every file of Depth Anything 3.
_INPUTS_DA3 = r"in_.*|pos_(local|global)|eps"


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
    for path in sorted(GOLDEN.rglob("*.npz")) + sorted(GOLDEN_DA3.rglob("*.npz")):
        if path.is_relative_to(GOLDEN):
            group = path.relative_to(GOLDEN).with_suffix("").as_posix()
            inputs = _INPUTS.get(group, "")
        else:
            group = path.relative_to(GOLDEN_DA3.parent).with_suffix("").as_posix()
            inputs = _INPUTS_DA3
        with np.load(path) as arrays:
            results = {n for n in arrays.files if not re.fullmatch(inputs, n)}
        missing += [f"{group}/{name}" for name in sorted(results) if (group, name) not in done]
    return missing


def _table(rows: list[ParityRow]) -> str:
    head = f"""\
# Parity with the original

Golden arrays were made by running the original PyTorch code on CPU in float32 (see
`tests/golden/vggt/README.md` and `tests/golden/da3/README.md`: tiny configurations of the full
architectures, random weights). Groups that begin with da3/ are of Depth Anything 3, all others of
VGGT. Every comparison below is a test; gates are at or under those recommended there from measured
float noise. Error is the largest absolute difference, or, where marked "rel.", that difference over
the largest magnitude of the golden array.

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


class FakeModel(nnx.Module):
    """A model that compiles in no time.

    Depth is 1 + brightness, cameras step to the right, confidence falls from left to right.
    """

    def __init__(self, heads=("camera", "depth")):
        self.heads = heads
        self.dtype = jnp.dtype("float32")
        self.one = nnx.Param(jnp.ones(()))

    def attention(self):
        return {"global": "none"}

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


@pytest.fixture(scope="session")
def fake_model():
    """FakeModel, a model that compiles in no time, for tests of what is around models."""
    return FakeModel


@pytest.fixture(scope="session")
def tiny_images(golden):
    """[2, 3, 56, 84, 3] of the golden run."""
    return np.ascontiguousarray(np.moveaxis(golden("inputs")["images"], 2, -1))
