"""Speed3R's attention against golden arrays, and its gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lite3r_jax.attention.dense import Dense
from lite3r_jax.attention.speed3r import Speed3R
from lite3r_jax.attention.strategy import AttentionInputs, Layouts, TokenLayout
from lite3r_jax.attention.window_selection import window_positions, windows_of
from lite3r_jax.layers.attention import Attention
from lite3r_jax.layers.rope import rope_table
from tests.attention.quick import jit

# scenes, views, rows, columns, heads, windows that are selected, window
CASES = {
    "base": (2, 2, 8, 8, 2, 3, 4),
    "views3": (1, 3, 8, 12, 3, 5, 4),
    "ties": (1, 2, 8, 8, 2, 3, 4),
    "few_windows": (1, 3, 4, 8, 2, 8, 4),
    "window8": (1, 2, 16, 16, 2, 2, 8),
}
WEIGHTS = {
    "qkv.weight": "qkv/kernel",
    "qkv.bias": "qkv/bias",
    "proj.weight": "proj/kernel",
    "proj.bias": "proj/bias",
    "q_norm.weight": "q_norm/scale",
    "q_norm.bias": "q_norm/bias",
    "k_norm.weight": "k_norm/scale",
    "k_norm.bias": "k_norm/bias",
}
GATE = {"gate.0.weight": "gate/kernel", "gate.0.bias": "gate/bias"}


@functools.cache
def arrays_of(path):
    with np.load(path) as file:
        return dict(file)


def put(module, names, arrays):
    """Put weights of the public code into a module."""
    for upstream, path in names.items():
        *parents, leaf = path.split("/")
        parent = functools.reduce(getattr, parents, module)
        x = arrays[f"w/{upstream}"]
        getattr(parent, leaf).set_value(jnp.asarray(x.T if leaf == "kernel" else x))


def layer_of(want, case):
    """The layer of a case, its core, layout and rotations."""
    _, s, h, w, n, k, edge = case
    c = want["x"].shape[-1]
    attn = Attention(c, n, qk_norm=True, kernel_init=nnx.initializers.zeros, rngs=nnx.Rngs(0))
    core = Speed3R(edge, k).build(
        heads=n, head_dim=c // n, param_dtype=jnp.float32, rngs=nnx.Rngs(0)
    )
    put(attn, WEIGHTS, want)
    put(core, GATE, want)
    layout = TokenLayout(s, 0, (h, w), "global", has_reference=False)
    rope = rope_table(want["pos_raster"][0, : h * w], c // n)
    return attn, core, layout, rope


SLOW = ("base", "views3", "few_windows", "window8")
NAMES = [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in CASES]


@pytest.mark.parametrize("name", NAMES)
def test_steps_output_and_gradients_are_those_of_the_public_code(name, golden_dir, parity):
    want = arrays_of(golden_dir.parent / "speed3r" / f"{name}.npz")
    attn, core, layout, rope = layer_of(want, CASES[name])
    parts, state = nnx.split((attn, core))
    windows = windows_of(layout, core.spec.window)
    perm = windows.tokens.reshape(-1)

    @jit
    def run(state, x):
        def objective(state, x):
            attn, core = nnx.merge(parts, state)
            out = attn(x, core, Layouts.both(layout), rope)
            weight = want["objective_weight"][:, np.argsort(perm)]
            return (out * weight).sum() / np.sqrt(x.shape[1]), {"out_raster": out} | steps(
                attn, core, layout, rope, x
            )

        return jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)(state, x)

    ((objective, got), (of_weights, of_x)) = run(state, want["x_raster"])
    group = f"speed3r/{name}"
    of_attn, of_core = nnx.merge(parts, of_weights)
    for module, names in ((of_attn, WEIGHTS), (of_core, GATE)):
        for upstream, path in names.items():
            leaf = functools.reduce(getattr, path.split("/"), module)[...]
            got[f"g/{upstream}"] = leaf.T if path.endswith("kernel") else leaf
    places = window_positions(rope.positions, layout, core.spec.window)
    got |= {
        "objective": objective,
        "grad_x": of_x[:, perm],
        "out": got["out_raster"][:, perm],
        "tile_perm": perm,
        "pos_pool": np.tile(places, (*CASES[name][:2], 1)),
    }
    for key in ("q", "k", "v", "sel", "gate"):
        got[key] = got[key][:, :, perm]
    got["o"] = got["o"][:, perm]
    relative = {"grad_x", *(key for key in got if key.startswith("g/"))}
    gates = dict.fromkeys(relative, 1e-5) | {"scores": 5e-5, "gate": 2e-6}
    gates |= dict.fromkeys(("tile_perm", "pos_pool", "topk"), 0)
    for key, array in got.items():
        golden = np.sort(want[key]) if key == "topk" else want[key]
        parity(group, key, array, golden, gates.get(key, 2e-5), relative=key in relative)


def steps(attn, core, layout, rope, x):
    """What there is between input and output, heads first; tokens view by view, row by row."""
    q, k, v = attn.project(x, rope)
    inputs = AttentionInputs(
        q, k, v, Layouts.both(layout), None, attn.functions(rope), lambda: x, lambda: x
    )
    pools = core._pools(inputs, x, x, layout, layout)
    of = core.spec.selection(layout, layout)
    selected, compressed = of.attend(q, k, v, pools, "blocked")
    gate = nnx.sigmoid(core.gate(x)).reshape(*x.shape[:2], -1, 2)
    names = ("q", "k", "v", "q_pool", "k_pool", "v_pool", "sel", "comp", "gate")
    arrays = (q, k, v, *pools, selected, compressed, gate)
    return {n: jnp.moveaxis(a, 2, 1) for n, a in zip(names, arrays, strict=True)} | {
        "scores": jnp.einsum("bqnd,bknd->bnqk", *pools[:2]),
        "topk": of.ids(*pools[:2]),
        "o": core(inputs).reshape(x.shape),
    }


@pytest.mark.parametrize("name", NAMES)
def test_all_windows_without_compression_are_dense_attention(name, golden_dir, parity):
    want = arrays_of(golden_dir.parent / "speed3r" / f"{name}.npz")
    *sizes, _, edge = CASES[name]
    attn, core, layout, rope = layer_of(want, (*sizes, 10**6, edge))
    core.gate.kernel.set_value(jnp.zeros_like(core.gate.kernel[...]))
    core.gate.bias.set_value(jnp.tile(jnp.asarray([-200.0, 200.0]), sizes[4]))
    dense = Dense().build(heads=1, head_dim=1, param_dtype=None, rngs=nnx.Rngs(0))
    x, layouts = want["x_raster"], Layouts.both(layout)
    out, same = jit(lambda x: [attn(x, c, layouts, rope) for c in (core, dense)])(x)
    np.testing.assert_allclose(out, same, atol=1e-5)
    parity(f"speed3r/{name}", "dense_out", out[:, want["tile_perm"]], want["dense_out"], 2e-5)
