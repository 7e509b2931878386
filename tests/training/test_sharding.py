"""Where arrays lie, and that it changes no value."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from lite3r_jax.errors import InputError
from lite3r_jax.training.sharding import (
    MeshOptions,
    ShardingRule,
    check_batch,
    follow_parameters,
    make_mesh,
    parameter_shardings,
)

ROOT = Path(__file__).parents[2]
MESH = AbstractMesh((2, 4, 1), ("data", "fsdp", "view"))
SHAPES = {
    "a/kernel": np.zeros((4, 8, 12)),
    "b/kernel": np.zeros((8, 6, 12)),
    "a/bias": np.zeros((8, 12)),
    "odd": np.zeros((3, 5)),
}


def specs(rules=()):
    return {k: v.spec for k, v in parameter_shardings(SHAPES, MESH, rules).items()}


def test_kernels_are_split_along_their_inputs_and_others_along_the_largest_that_divides():
    assert specs() == {
        "a/kernel": PartitionSpec(None, "fsdp"),
        "b/kernel": PartitionSpec(None, None, "fsdp"),
        "a/bias": PartitionSpec(None, "fsdp"),
        "odd": PartitionSpec(),
    }


def test_the_first_rule_that_fits_counts():
    rules = (ShardingRule("kernel$", (None, None, "fsdp")), ShardingRule("^a/", ()))
    actual = specs(rules)
    assert actual["a/kernel"] == PartitionSpec(None, None, "fsdp")
    assert actual["a/bias"] == PartitionSpec()


@pytest.mark.parametrize(
    "rule,message",
    [
        (ShardingRule("lora", ()), "sharding rule: 'lora' is in the path of no parameter"),
        (
            ShardingRule("odd", ("model",)),
            r"axes \['model'\] are not in the mesh; choose from data",
        ),
        (ShardingRule("odd", (None, "fsdp")), r"does not fit odd \(3, 5\)"),
        (ShardingRule("odd", (None, None, "data")), r"does not fit odd \(3, 5\)"),
    ],
)
def test_rules_that_do_not_fit_are_refused(rule, message):
    with pytest.raises(InputError, match=message):
        specs((rule,))


def test_the_optimizer_lies_where_its_parameters_do():
    where = parameter_shardings(SHAPES, MESH)
    tree = [{"mu": dict(SHAPES), "count": np.zeros(())}, {"nu": {"odd": np.zeros((4, 4))}}]
    shardings = follow_parameters(tree, SHAPES, where)
    assert shardings[0]["mu"] == where
    assert shardings[0]["count"].spec == PartitionSpec()
    assert shardings[1]["nu"]["odd"].spec == PartitionSpec()  # another shape: not of this parameter


@pytest.mark.parametrize(
    "options,message",
    [
        (MeshOptions(fsdp=3), "mesh: data 0, fsdp 3, view 1 does not divide 1 devices"),
        (MeshOptions(data=2), "choose sizes whose product is 1"),
        (MeshOptions(view=0), "sizes have to be positive"),
    ],
)
def test_meshes_that_do_not_fit_the_devices_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        make_mesh(options, jax.devices()[:1])


def test_batches_that_the_mesh_does_not_divide_are_refused():
    mesh = make_mesh(MeshOptions(), jax.devices()[:1])
    check_batch({"x": np.zeros((6, 3, 2))}, mesh, accumulate=3)
    with pytest.raises(
        InputError, match=r"batch of 6 scenes: does not divide by 1 devices .* 4 acc"
    ):
        check_batch({"x": np.zeros((6, 3, 2))}, mesh, accumulate=4)


PROGRAM = textwrap.dedent("""
    import json, sys
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import NamedSharding, PartitionSpec
    from lite3r_jax.backbones.heads import map_frames
    from lite3r_jax.errors import InputError
    from lite3r_jax.training.sharding import MeshOptions, check_batch, make_mesh, place_batch
    from lite3r_jax.training.step import StepOptions
    from tests.training.toy import ToyBatches, toy_trainer
    from tools.benchmark.collectives import collectives

    def run(data, fsdp, view, accumulate=1):
        mesh = make_mesh(MeshOptions(data, fsdp, view), jax.devices()[: data * fsdp * view])
        trainer = toy_trainer(6, mesh=mesh, options=StepOptions(accumulate=accumulate))
        state, batches, metrics = trainer.new_state(), ToyBatches(), []
        for _ in range(6):
            placed = place_batch(next(batches).arrays(), mesh, accumulate)
            state, values = trainer.step(state, trainer.frozen, placed)
            metrics.append([float(values["loss"]), float(values["grad_norm"])])
        kernel = state.params["blocks/kernel"]
        share = kernel.addressable_shards[0].data.size / kernel.size
        moment = state.opt_state[0].mu["blocks/kernel"]
        assert moment.sharding == kernel.sharding
        return metrics, {k: np.asarray(x).tolist() for k, x in state.params.items()}, share

    def frames():
        # Frames of a loop, on the devices where they are, and the weights that it reads: what
        # comes back, and what is sent.
        mesh = make_mesh(MeshOptions(2, 2, 2))
        rng = np.random.default_rng(0)
        x = rng.standard_normal((8, 6, 2, 3, 4)).astype(np.float32)
        w = rng.standard_normal((4, 5)).astype(np.float32)

        def one(w, frame):
            return jnp.tanh(frame @ w).sum((1, 3))

        with jax.set_mesh(mesh):
            here = place_batch({"x": x}, mesh)["x"]
            split = jax.device_put(w, NamedSharding(mesh, PartitionSpec("fsdp")))

            def loss(t, w):
                return (map_frames(one, w, t, 2, remat=True) ** 2).sum()

            compiled = jax.jit(jax.grad(loss)).lower(here, split).compile()
            got = map_frames(one, split, here, 2)
        error = np.abs(got - one(w, x.reshape(48, 2, 3, 4)).reshape(8, 6, 3)).max()
        return float(error), [vars(c) for c in collectives(compiled.as_text())]

    meshes = json.loads(sys.argv[1])
    try:
        check_batch({"x": np.zeros((8, 3, 2))}, make_mesh(MeshOptions(view=2)))
    except InputError as error:
        refused = str(error)
    print(json.dumps([[run(*mesh) for mesh in meshes], refused, frames()]))
""")


MESHES = [
    (1, 1, 1), (2, 1, 1), (4, 1, 1), (8, 1, 1), (1, 2, 1), (1, 8, 1), (1, 1, 2), (1, 1, 4),
    (2, 4, 1), (4, 1, 2), (1, 2, 4), (1, 1, 1, 4), (2, 2, 2), (2, 2, 2, 2),
]  # fmt: skip


@pytest.mark.slow
def test_values_on_every_mesh_are_those_of_one_device():
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, json.dumps(MESHES)],
        cwd=ROOT,
        env=os.environ
        | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr
    runs, refused, (frames_error, sent) = json.loads(run.stdout)
    assert frames_error < 1e-5
    once = {"kind": "all-gather", "size": 4 * 5 * 4, "times": 1}
    assert sent == [once], "frames stay on their devices, and get the weights before the loop"
    assert "scenes of 3 views: do not divide by 2 devices of the mesh axis view" in refused
    metrics, params, _ = runs[0]
    first = {path: np.array(x) for path, x in params.items()}
    for mesh, (got, moved, share) in zip(MESHES[1:], runs[1:], strict=True):
        parts = mesh[3] if len(mesh) > 3 else 1
        if parts > 1:  # noise of other random keys
            np.testing.assert_allclose(got, metrics, rtol=2e-3, err_msg=str(mesh))
            continue
        assert share == 1 / mesh[1]
        np.testing.assert_allclose(got, metrics, rtol=1e-5, err_msg=str(mesh))
        for path, x in moved.items():
            np.testing.assert_allclose(x, first[path], rtol=0, atol=2e-5, err_msg=f"{mesh} {path}")
