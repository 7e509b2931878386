"""SLA on a mesh: same values, and nobody sends queries, keys or values around."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from lite3r_jax.attention.sla import SLA
from lite3r_jax.attention.strategy import AttentionInputs, Layouts, TokenLayout
from tests.kernels.devices import proven_tpu

ROOT = Path(__file__).parents[2]

PROGRAM = textwrap.dedent("""
    import dataclasses, json, re
    import jax, jax.numpy as jnp, numpy as np
    from flax import nnx
    from jax.sharding import AxisType, NamedSharding, PartitionSpec
    from lite3r_jax.attention.strategy import AttentionInputs, Layouts, TokenLayout
    from lite3r_jax.attention.sla import SLA

    layout = TokenLayout(3, 2, (5, 7), "global")
    rng = np.random.default_rng(0)
    args = [rng.standard_normal((4, layout.tokens, 4, 8), np.float32) for _ in range(4)]
    w = rng.standard_normal((8, 8), np.float32)

    def both(spec):
        core = spec.build(heads=4, head_dim=8, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
        graph, _ = nnx.split(core)

        def f(q, k, v, w):
            state = nnx.State({"proj_lin": nnx.Param(w)})
            return nnx.merge(graph, state)(AttentionInputs(q, k, v, Layouts.both(layout)))

        def g(q, k, v, up, w):
            o, pull = jax.vjp(f, q, k, v, w)
            return o, *pull(up)

        return jax.jit(g)

    plain = SLA(keep=0.3, block=8)
    wanted = both(plain)(*args, w)
    sends = r"= (.*) (all-[a-z]+|ragged-[a-z-]+|collective-[a-z]+|reduce-scatter)(?:-start)?\\("
    by_name = dataclasses.replace(plain, batch_axis="data", heads_axis="model")
    for split, axes, where in (
        (by_name, ("data", "rest", "model"), ("data", None, "model")),
        (plain, ("data", "fsdp", "view"), (("data", "fsdp"), None, "view")),
    ):
        mesh = jax.make_mesh((2, 2, 2), axes, axis_types=(AxisType.Auto,) * 3)
        here = NamedSharding(mesh, PartitionSpec(*where))
        placed = [jax.device_put(x, here) for x in args]
        placed.append(jax.device_put(w, NamedSharding(mesh, PartitionSpec())))
        with jax.set_mesh(mesh):
            compiled = both(split).lower(*placed).compile()
        got = compiled(*placed)
        print(json.dumps({
            "devices": len(jax.devices()),
            "errors": [float(np.abs(a - b).max()) for a, b in zip(got, wanted)],
            "split": [x.sharding.is_equivalent_to(here, 4) for x in got[:4]],
            "collectives": re.findall(sends, compiled.as_text()),
        }))
""")


@pytest.mark.slow
def test_values_on_a_mesh_are_those_of_one_device_and_only_a_gradient_is_sent():
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM],
        cwd=ROOT,
        env={"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr
    named, automatic = map(json.loads, run.stdout.splitlines())
    for report in (named, automatic):
        assert report["devices"] == 8
        assert max(report["errors"]) < 1e-4
        assert report["split"] == [True] * 4
        # The gradient of proj_lin, to which every device contributes.
        assert {kind for _, kind in report["collectives"]} == {"all-reduce"}
        assert {shape.partition("{")[0] for shape, _ in report["collectives"]} == {"f32[8,8]"}


@pytest.mark.parametrize(
    "mesh,axis,message",
    [
        ({}, "model", r"heads_axis 'model' is not an axis of the mesh in use \(none\)"),
        ({"data": 2}, "model", r"not an axis of the mesh in use \(data: 2\)"),
        ({"model": 2}, "model", "heads_axis 'model': 3 do not split into 2 equal parts"),
    ],
)
def test_meshes_that_do_not_fit_are_refused(mesh, axis, message):
    layout = TokenLayout(1, 1, (2, 2), "frame")
    core = SLA(heads_axis=axis).build(
        heads=3, head_dim=8, param_dtype=jnp.float32, rngs=nnx.Rngs(0)
    )
    x = jnp.ones((1, layout.tokens, 3, 8))
    with (
        jax.sharding.use_abstract_mesh(AbstractMesh(tuple(mesh.values()), tuple(mesh))),
        pytest.raises(ValueError, match=message),
    ):
        core(AttentionInputs(x, x, x, Layouts.both(layout)))


def lowered_for_tpus(sizes, heads, implementation="tpu"):
    """A layer of four scenes on a mesh of described TPUs."""
    mesh = AbstractMesh(
        sizes, ("data", "fsdp", "view"), axis_types=(AxisType.Auto,) * 3,
        abstract_device=jax.sharding.AbstractDevice("TPU v5 lite", num_cores=1, platform="tpu"),
    )  # fmt: skip
    layout = TokenLayout(2, 1, (8, 8), "global")
    core = SLA(keep=0.5, implementation=implementation).build(
        heads=heads, head_dim=64, param_dtype=jnp.float32, rngs=nnx.Rngs(0)
    )

    def attend(q, k, v):
        return core(AttentionInputs(q, k, v, Layouts.both(layout)))

    where = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    x = jax.ShapeDtypeStruct((4, layout.tokens, heads, 64), jnp.bfloat16, sharding=where)
    with jax.sharding.use_abstract_mesh(mesh):
        return jax.jit(attend).trace(x, x, x).lower(lowering_platforms=("tpu",)).as_text()


@pytest.mark.parametrize("sizes", [(1, 4, 1), (2, 2, 2)])
def test_kernels_for_tpus_run_on_every_device_of_a_training(sizes):
    """They are lowered only where no axis of the mesh is left to XLA, also none of one device."""
    assert "tpu_custom_call" in lowered_for_tpus(sizes, heads=2)


def test_kernels_for_tpus_are_left_out_where_an_axis_divides_nothing(caplog):
    """Heads that an axis does not divide leave it to XLA."""
    reason = "XLA would have to split it over view=2 of the mesh"
    with pytest.raises(ValueError, match=f"'tpu' cannot run this: {reason}"):
        lowered_for_tpus((2, 1, 2), heads=3)
    with proven_tpu():
        assert "tpu_custom_call" not in lowered_for_tpus((2, 1, 2), 3, "auto")
    assert f"sla: 'blocked' runs; 'tpu' cannot: {reason}" in caplog.text
