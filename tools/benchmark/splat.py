"""Compares cameras by Gaussian splats that are trained with them and rendered from held-out views.

    python -m tools.benchmark.splat [--scenes 3] [--degrees 2] [--size 64] [--steps 300]

Eight views of a generated room are disturbed as in `tools.benchmark.refine` and refined at 448
pixels. Three splats are trained, with the disturbed, the refined and the true cameras, on six
of the views, and rendered from the other two with the cameras that the same set has for these.
Depth of the set gives the Gaussians to begin with; cameras stay as they are, as in 3DGS.

The rasterizer is a small one of its own, for a CPU: isotropic Gaussians, projected by the
derivative of the projection (Zwicker et al., EWA splatting, 2001), sorted by depth and composed
from front to back (Kerbl et al., 3D Gaussian Splatting, 2023), the nearest ones of each tile,
without densification and spherical harmonics. It compares cameras; it is no trainer to use.
"""

import argparse
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lite3r_jax.data.synthetic.source import SyntheticScenes
from lite3r_jax.refine import refine
from lite3r_jax.refine.geometry_of_views import Cameras
from lite3r_jax.refine.klt import surface_points
from lite3r_jax.scene import Scene
from tools.benchmark.refine import camera_errors, disturbed, scene_of

VIEWS, HELD_OUT = 8, (2, 5)
_TILE, _PER_TILE = 8, 128  # pixels across a tile, and Gaussians that it is made of at most
_BLUR = 0.3  # variance in pixels that is added to every Gaussian, as in 3DGS
_NEAR = 1e-2  # of the median depth, before which nothing is drawn

Splats = dict[str, jax.Array]
"""Gaussians: center [N, 3], log_scale [N], color [N, 3] and opacity [N], the last two as logits."""


def render(splats: Splats, pose: jax.Array, lens: jax.Array, size: int, near: float) -> jax.Array:
    """Renders Gaussians to an image [size, size, 3]; pose [3, 4] world to camera, lens [3, 3]."""
    camera = splats["center"] @ pose[:, :3].T + pose[:, 3]
    z = jnp.maximum(camera[:, 2], near)
    x, y = camera[:, 0] / z, camera[:, 1] / z
    fx, fy = lens[0, 0], lens[1, 1]
    u, v = fx * x + lens[0, 2], fy * y + lens[1, 2]
    spread = jnp.exp(2 * splats["log_scale"]) / z**2
    a = spread * fx**2 * (1 + x**2) + _BLUR  # of the covariance in pixels
    b = spread * fx * fy * x * y
    c = spread * fy**2 * (1 + y**2) + _BLUR
    order = jnp.argsort(jax.lax.stop_gradient(z))
    determinant = a * c - b**2
    seen = (camera[:, 2] > near) * jax.nn.sigmoid(splats["opacity"])
    u, v, a, b, c, seen = (
        values[order] for values in (u, v, a / determinant, b / determinant, c / determinant, seen)
    )
    color = jax.nn.sigmoid(splats["color"])[order]
    background = color.mean(0)
    # of each tile the Gaussians that are nearest to it in their own widths, from front to back
    tiles = size // _TILE
    middle = (jnp.arange(tiles) + 0.5) * _TILE - 0.5
    off_u, off_v = (jnp.maximum(jnp.abs(middle[:, None] - w) - _TILE / 2, 0) for w in (u, v))
    off = (off_u**2)[None] * c + (off_v**2)[:, None] * a  # [rows of tiles, columns, N]
    off = jnp.where(seen > 0, off, jnp.inf)
    _, chosen = jax.lax.top_k(-jax.lax.stop_gradient(off), min(_PER_TILE, len(u)))
    chosen = jnp.sort(chosen, axis=-1)[:, :, None, None]
    u, v, a, b, c, seen = (values[chosen] for values in (u, v, a, b, c, seen))
    inner = jnp.arange(_TILE)
    dx = (middle[:, None] - _TILE / 2 + 0.5 + inner)[None, :, None, :, None] - u
    dy = (middle[:, None] - _TILE / 2 + 0.5 + inner)[:, None, :, None, None] - v
    power = -0.5 * (c * dx**2 + a * dy**2) + b * dx * dy
    alpha = jnp.minimum(seen * jnp.exp(power), 0.99)
    logs = jnp.log1p(-alpha)
    passed = jnp.cumsum(logs, axis=-1)
    weight = jnp.exp(passed - logs) * alpha
    image = jnp.einsum("rcyxk,rckd->rcyxd", weight, color[chosen[:, :, 0, 0]])
    image = image + jnp.exp(passed[..., -1:]) * background
    return image.transpose(0, 2, 1, 3, 4).reshape(size, size, 3)


def reduced(scene: Scene, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Reduces a scene to images [S, size, size, 3] in [0, 1] and their intrinsics [S, 3, 3].

    Images are float32; intrinsics are in pixels of these images.
    """
    factor = scene.size[0] // size
    blocks = scene.images.reshape(scene.views, size, factor, size, factor, 3)
    k = scene.intrinsics.astype(np.float64)
    k[:, :2, :2] /= factor
    k[:, :2, 2] = (k[:, :2, 2] + 0.5) / factor - 0.5
    return (blocks.mean((2, 4)) / 255).astype(np.float32), k.astype(np.float32)


def beginning(scene: Scene, views: Sequence[int], count: int) -> Splats:
    """Places Gaussians at pixels of the views, where depth and cameras of the scene have them."""
    cameras, rng = Cameras.of(scene), np.random.default_rng(0)
    points = np.concatenate([surface_points(scene, cameras, view) for view in views])
    colors = scene.images[list(views)].reshape(-1, 3) / 255
    depth = scene.depth[list(views)].ravel()
    chosen = rng.choice(np.flatnonzero(depth > 0), count, replace=False)
    # as wide as its share of the pixels of the views, seen from its own view
    across = np.sqrt(len(views) / count) * scene.size[0]
    scale = 0.5 * depth[chosen] * across / scene.intrinsics[0, 0, 0]
    color = np.clip(colors[chosen], 0.02, 0.98)
    return {
        "center": jnp.asarray(points[chosen], jnp.float32),
        "log_scale": jnp.asarray(np.log(scale), jnp.float32),
        "color": jnp.asarray(np.log(color / (1 - color)), jnp.float32),
        "opacity": jnp.full(count, 1.0, jnp.float32),
    }


def trained(scene: Scene, size: int, steps: int, count: int) -> tuple[Splats, float]:
    """Trains Gaussians on views that are not held out; returns them and PSNR in dB on the rest."""
    images, lenses = reduced(scene, size)
    views = [view for view in range(scene.views) if view not in HELD_OUT]
    splats = beginning(scene, views, count)
    near = float(np.median(scene.depth)) * _NEAR
    unit = float(np.median(scene.depth)) / lenses[0, 0, 0]  # of a pixel
    rates = {"center": 0.1 * unit, "log_scale": 0.01, "color": 0.03, "opacity": 0.03}
    optimizer = optax.multi_transform(
        {name: optax.adam(rate) for name, rate in rates.items()}, {name: name for name in rates}
    )
    draw = jax.jit(partial(render, size=size, near=near))

    @jax.jit
    def step(splats: Splats, state: Any, pose: Any, lens: Any, image: Any) -> Any:
        loss = lambda s: jnp.abs(draw(s, pose, lens) - image).mean()  # noqa: E731
        updates, state = optimizer.update(jax.grad(loss)(splats), state, splats)
        return optax.apply_updates(splats, updates), state

    state = optimizer.init(splats)
    for number in range(steps):
        view = views[number % len(views)]
        splats, state = step(splats, state, scene.extrinsics[view], lenses[view], images[view])
    off = [
        np.asarray(draw(splats, scene.extrinsics[view], lenses[view])) - images[view]
        for view in HELD_OUT
    ]
    return splats, float(-10 * np.log10(np.mean(np.square(off))))


def compared(
    truth: Scene, degrees: float, seed: int, size: int, steps: int, count: int
) -> tuple[dict[str, float], list[Scene]]:
    """Returns the PSNR in dB with predicted, refined and true cameras, and the three scenes."""
    start = disturbed(truth, degrees, seed)
    sets = {"predicted": start, "refined": refine(start).scene, "true": truth}
    values = {name: trained(scene, size, steps, count)[1] for name, scene in sets.items()}
    return values, list(sets.values())


def main(arguments: Sequence[str] | None = None) -> int:
    """Compares the cameras of all scenes and prints a table."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmark.splat", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--scenes", type=int, default=3)
    parser.add_argument("--degrees", type=float, default=2.0)
    parser.add_argument("--size", type=int, default=64, help="pixels: 56, 64, 112")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--count", type=int, default=2000, help="Gaussians")
    args = parser.parse_args(arguments)
    source = SyntheticScenes("test", args.scenes, VIEWS, samples=2)
    print("| room | rotation, degrees: predicted -> refined | held out, dB: predicted | refined"
          " | true | CPU seconds |")  # fmt: skip
    print("|---|---|---|---|---|---|")
    for number, name in enumerate(source.scenes):
        truth = scene_of(source.read(name, range(VIEWS), (448, 448)))
        began = time.process_time()
        psnr, (start, better, _) = compared(
            truth, args.degrees, number, args.size, args.steps, args.count
        )
        turned = [camera_errors(scene, truth)["rotation"] for scene in (start, better)]
        print(
            f"| {number} | {turned[0]:.2f} -> {turned[1]:.2f}"
            f" | {psnr['predicted']:.1f} | {psnr['refined']:.1f} | {psnr['true']:.1f}"
            f" | {time.process_time() - began:.0f} |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
