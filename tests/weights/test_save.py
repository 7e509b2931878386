"""What was trained here, saved, is what `load` reads."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from lite3r_jax.attention.presets import plan
from lite3r_jax.errors import InputError
from lite3r_jax.weights.load import load
from lite3r_jax.weights.manifest import Origin
from lite3r_jax.weights.save import save
from tests.weights.test_load import parameters


@pytest.fixture(scope="module")
def model(golden_weights):
    return load(golden_weights, heads=("camera", "depth"), param_dtype=jnp.float32)


def test_a_saved_model_loads_bit_for_bit(model, tmp_path):
    origin = Origin("Apache-2.0", "us")
    manifest = save(model, tmp_path / "out", backbone="vggt", origin=origin)
    again = load(tmp_path / "out")
    assert again.config == model.config and again.heads == model.heads
    want = parameters(model)
    loaded = parameters(again)
    assert want.keys() == loaded.keys()
    for path, array in want.items():
        np.testing.assert_array_equal(loaded[path], array)
    assert manifest.origin == origin
    assert sum(part.parameters for part in manifest.parts.values()) == sum(
        array.size for array in want.values()
    )


@pytest.mark.slow
def test_saved_as_bfloat16_it_is_the_rounded_model(model, tmp_path):
    save(model, tmp_path / "out", backbone="vggt", dtype=jnp.bfloat16)
    loaded = parameters(load(tmp_path / "out"))
    for path, array in parameters(model).items():
        assert loaded[path].dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(loaded[path], array.astype(ml_dtypes.bfloat16))


@pytest.mark.slow
def test_what_is_no_model_of_the_backbone_is_refused_and_nothing_is_written(
    golden_weights, model, tmp_path
):
    student = load(golden_weights, heads=("camera", "depth"), plan=plan("sla_global"))
    with pytest.raises(InputError, match=r"proj_lin.* is only in the model; a student"):
        save(student, tmp_path / "out", backbone="vggt")
    graph, state = nnx.split(model)
    broken = nnx.merge(graph, jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(np.nan), state))
    with pytest.raises(InputError, match="holds NaN"):
        save(broken, tmp_path / "out", backbone="vggt")
    assert not list(tmp_path.iterdir())


def test_what_exists_stays_unless_it_may_be_replaced(model, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="exists already"):
        save(model, tmp_path / "out", backbone="vggt")
    assert not list((tmp_path / "out").iterdir())
    save(model, tmp_path / "out", backbone="vggt", overwrite=True)
    assert (tmp_path / "out" / "manifest.json").is_file()
