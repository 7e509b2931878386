"""Loops over frames and heads on a mesh: the numbers of one device, and nothing gathered."""

import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lite3r_jax.mesh import shard_major, unshard

ROOT = Path(__file__).parents[1]

PROGRAM = textwrap.dedent("""
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import NamedSharding, PartitionSpec
    from lite3r_jax.attention import dense
    from lite3r_jax.kernels.dense.reference import reference
    from lite3r_jax.mesh import SCENES, shard_major, unshard
    from lite3r_jax.training.sharding import MeshOptions, make_mesh
    from tools.benchmark.collectives import collectives

    rng = np.random.default_rng(0)
    jax.config.update("jax_default_matmul_precision", "highest")

    def gradients(attend):
        return jax.jit(lambda q, k, v, g: jax.vjp(attend, q, k, v)[1](g))

    for sizes, shape, spec, sends in (
        ((4, 2, 1), (8, 40, 4, 8), PartitionSpec(SCENES), False),
        ((2, 1, 4), (4, 20, 8, 8), PartitionSpec(SCENES, "view"), True),
        ((1, 1, 8), (2, 16, 3, 8), PartitionSpec(None, "view"), True),  # 3 heads do not divide
    ):
        mesh = make_mesh(MeshOptions(*sizes))
        arrays = [rng.standard_normal(shape).astype(np.float32) for _ in range(4)]
        with jax.set_mesh(mesh):
            here = [jax.device_put(x, NamedSharding(mesh, spec)) for x in arrays]
            frames = jax.jit(lambda x: unshard(shard_major(x), *x.shape[:2]))(here[0])
            np.testing.assert_array_equal(frames, arrays[0])
            blocked = gradients(lambda q, k, v: dense.dense_attention(q, k, v, "blocked", 16, 64))
            compiled = blocked.lower(*here).compile()
            got = compiled(*here)
        for a, b in zip(got, gradients(reference)(*arrays), strict=True):
            np.testing.assert_allclose(a, b, atol=5e-6)
        kinds = {c.kind for c in collectives(compiled.as_text())}
        if not sends:
            assert not kinds, kinds
    print("compared")
""")


@pytest.mark.parametrize("shape", [(1, 1, 3), (4, 6, 2)])
def test_without_a_mesh_there_is_one_device_and_the_order_stays(shape):
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape))
    apart = shard_major(x)
    assert apart.shape == (1, shape[0] * shape[1], shape[2])
    np.testing.assert_array_equal(unshard(apart, *shape[:2]), x)


@pytest.mark.slow
def test_on_a_mesh_attention_is_that_of_one_device_and_scenes_are_not_sent():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env=flags, capture_output=True, text=True
    )
    assert ended.stdout == "compared\n", ended.stderr[-3000:]
    assert jax.device_count() == 1
