"""Measures VGGT-1B and DA3-Large with random weights, and VGGT's heads: time, peak memory."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx

from lite3r_jax.attention.plan import Plan
from lite3r_jax.attention.presets import parse_plan
from lite3r_jax.backbones.base import get_backbone
from lite3r_jax.backbones.dinov2 import EncoderConfig
from lite3r_jax.backbones.heads import DPTConfig, run_frames
from lite3r_jax.backbones.vggt.camera_head import CameraConfig, IterativeCameraHead
from lite3r_jax.backbones.vggt.config import TrunkConfig, VGGTConfig
from lite3r_jax.benchmarking.device_check.rows import Figures, Job, Row, done, milliseconds
from lite3r_jax.benchmarking.device_check.sizes import Sizes
from lite3r_jax.benchmarking.flops import count
from lite3r_jax.benchmarking.measure import Protocol, measure
from lite3r_jax.errors import InputError
from lite3r_jax.evaluation.variants import held_dtype, parse_variants
from lite3r_jax.layers.dpt import DPT
from lite3r_jax.layers.rngs import traced_rngs
from lite3r_jax.precision import Kind, deploy, preset

PATCH = 14
VARIANTS = ("dense-bfloat16", "sla_global(keep=0.1)-bfloat16", "sla_global(keep=0.1)-fp8_dynamic")
HEADS = ("camera", "depth")
_SMALL = VGGTConfig(
    embed_dim=128,
    num_register_tokens=1,
    vit=EncoderConfig(1, 2),
    aggregator=TrunkConfig(4, 2),
    camera_head=CameraConfig(trunk_depth=1, num_heads=4, num_iterations=1),
    dpt=DPTConfig(16, (16, 16, 16, 16), (0, 1, 2, 3)),
)


def camera_rows(sizes: Sizes, end: float) -> Iterator[Row]:
    """Times the camera head of VGGT, which is float32 and has 4 rounds of 4 layers."""
    config = _SMALL if sizes.small else VGGTConfig()
    rows = ((n, Row("heads", n, "camera head", "float32")) for n in sizes.views)
    yield from done((Job(row, partial(_camera, config, n)) for n, row in rows), end)


def depth_rows(sizes: Sizes, end: float) -> Iterator[Row]:
    """Times the depth head of VGGT, with one and with eight frames at a time."""
    config = _SMALL if sizes.small else VGGTConfig()
    cases = ((n, c, f"frame_chunk {c}") for n in sizes.views for c in (1, 8))
    jobs = (
        Job(Row("heads", n, "depth head", name), partial(_depth, config, n, sizes.grid, c))
        for n, c, name in cases
    )
    yield from done(jobs, end)


def _depth(config: VGGTConfig, views: int, grid: tuple[int, int], chunk: int) -> Figures:
    dim, dpt = 2 * config.embed_dim, config.dpt
    kinds = {"features": dpt.features, "out_channels": dpt.out_channels, "outputs": 2}
    kinds |= {"patch": config.patch_size, "param_dtype": jnp.float32}
    graph, state = nnx.split(nnx.eval_shape(lambda: DPT(dim, **kinds, rngs=traced_rngs(0))))

    def call(x: jax.Array, state: Any) -> jax.Array:
        return run_frames(nnx.merge(graph, state), x, (0, 1, 2, 3), 0, chunk, grid)

    shape = 1, views, 4, grid[0] * grid[1], dim
    x = jax.random.normal(jax.random.key(0), shape, jnp.bfloat16)
    return Figures(milliseconds(call, [x, drawn(state)]))


def _camera(config: VGGTConfig, views: int) -> Figures:
    dim = 2 * config.embed_dim
    kinds = {"plan": Plan(), "param_dtype": jnp.float32}
    head = nnx.eval_shape(
        lambda: IterativeCameraHead(config.camera_head, dim, **kinds, rngs=traced_rngs(0))
    )
    graph, state = nnx.split(head)
    x = jax.random.normal(jax.random.key(0), (1, views, dim))
    ms = milliseconds(lambda x, state: nnx.merge(graph, state)(x), [x, drawn(state)])
    return Figures(ms)


def model_rows(backbone: str, variant: str, sizes: Sizes, end: float) -> Iterator[Row]:
    """Measures a model from images to cameras and depth, with its peak memory.

    Fewest views come first.

    Args:
        backbone: registry name.
        variant: as in evaluations.
        sizes: of scenes and models.
        end: as for `rows.done`.
    """
    views = sorted(sizes.views)
    row = Row(backbone, 0, "images to cameras and depth", variant)
    model = None

    def run(number: int) -> Figures:
        nonlocal model
        model = model or _random_model(backbone, variant, small=sizes.small)
        height, width = (PATCH * n for n in sizes.grid)
        protocol = Protocol((number,), height, width, warmup=1, runs=3)
        [cell] = measure(variant, model, protocol, count=count)
        if cell.missing:
            raise InputError(cell.missing)
        return Figures(1000 * cell.median, cell.flops["total"], cell.peak)

    yield from done((Job(replace(row, views=n), partial(run, n)) for n in views), end)


def _random_model(backbone: str, variant: str, *, small: bool) -> Any:
    entry = get_backbone(backbone)
    [parsed] = parse_variants(variant, where="variant")
    low = parsed.precision.startswith("fp8")

    def build() -> Any:
        model = entry.build(
            _SMALL if small else entry.default_config,
            heads=HEADS,
            plan=parse_plan(parsed.attention, "variant"),
            dtype=jnp.bfloat16,
            param_dtype=held_dtype(parsed),
            rngs=traced_rngs(0),
        )
        if not low:
            return model
        kind = cast(Kind, parsed.precision)
        return deploy(model, preset("default"), kind, rest=jnp.bfloat16)

    graph, state = nnx.split(nnx.eval_shape(build))
    return nnx.merge(graph, drawn(state))


def drawn(state: Any) -> Any:
    """Replaces abstract arrays by random numbers N(0, 0.02^2), drawn on the device."""

    @partial(jax.jit, static_argnums=(1, 2))
    def draw(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return (0.02 * jax.random.normal(key, shape)).astype(dtype)

    leaves, structure = jax.tree.flatten(state)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    arrays = [draw(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, arrays)
