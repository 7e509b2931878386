"""Attention over views that lie on several devices, with the same results as on one device.

Two ways are exact. By heads: every device sends away the queries, keys and values of its views but
for its own heads, has all tokens of these, attends as one device would, and sends outputs back. By
queries: every device gets all keys and values and attends to them with the queries of its own
views. In both ways views that fill up the parts are cut off the keys before anything attends.
What a strategy decides by all heads together (which tokens are merged) the devices work out before.
"""

from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from lite3r_jax.attention.layouts import Layouts, TokenLayout
from lite3r_jax.attention.strategy import AttentionCore, AttentionInputs, AttentionStrategy
from lite3r_jax.errors import InputError
from lite3r_jax.mesh import VIEWS, ViewParts

Way = Literal["own views", "heads", "queries"]


@dataclass(frozen=True)
class Sent:
    """How devices share an attention layer over all views, and how many tokens they exchange.

    Attributes:
        way: "own views": nothing is sent; "heads" and "queries": see the module.
        tokens: what a device gets from the others, in tokens of all heads: of keys, values, queries
            and outputs together.
    """

    way: Way
    tokens: float


def attend_in_parts(core: AttentionCore, inputs: AttentionInputs) -> jax.Array:
    """Computes attention for the views of this device; inside of `ViewParts.on_each`.

    Args:
        core: core of the strategy.
        inputs: tokens of this device's views, with layouts that say which parts there are.

    Returns:
        [B, Tq, N, D].

    Raises:
        InputError: see `plan_parts`.
    """
    layout, _ = inputs.layouts.regular("views in parts")
    parts, spec = layout.parts, core.spec
    assert parts is not None
    if spec.own_view_only:
        return core(replace(inputs, layouts=Layouts.both(replace(layout, parts=None))))
    core, inputs = core.reduced(inputs)
    key = inputs.layouts.regular_keys(spec.name)
    all_keys = inputs.all_keys
    sent = plan_parts(spec, layout, inputs.q.shape[2])
    inputs = replace(core.agree(inputs), of_queries=None, of_keys=None)
    layouts = Layouts(layout.whole, key.whole)
    if inputs.layouts.all_keys is not None:
        layouts = replace(layouts, all_keys=inputs.layouts.all_keys.whole)
    p = layout.tokens_per_view

    if sent.way == "queries":
        k, v = inputs.k, inputs.v
        if key.parts is not None:
            k, v = (parts.gather(x, key.tokens_per_view) for x in (k, v))
        layouts = replace(layouts, query=replace(layout, parts=None), all_keys=None)
        return core(replace(inputs, k=k, v=v, layouts=layouts, all_keys=None))

    def my_heads(x: jax.Array) -> jax.Array:
        """Cuts this device's heads out of [B, Tk, N, D], which is equal on all devices."""
        heads = x.shape[2] // parts.devices
        return lax.dynamic_slice_in_dim(x, lax.axis_index(VIEWS[0]) * heads, heads, axis=2)

    def of_keys(x: jax.Array) -> jax.Array:
        """Returns this device's heads of an array of the keys, exchanged if keys are in parts."""
        return my_heads(x) if key.parts is None else _to_heads(x, parts)

    k, v = of_keys(inputs.k), of_keys(inputs.v)
    if all_keys is not None:
        all_keys = _to_heads(all_keys[0], parts), _to_heads(all_keys[1], parts)
    q = _to_heads(inputs.q, parts)
    beside = {
        "query_side": tuple(_to_heads(x, parts) for x in inputs.query_side),
        "key_side": tuple(map(of_keys, inputs.key_side)),
    }
    o = core(replace(inputs, q=q, k=k, v=v, layouts=layouts, all_keys=all_keys, **beside))
    fill = parts.filled * p - o.shape[1]
    o = jnp.pad(o, ((0, 0), (0, fill), (0, 0), (0, 0)))
    return lax.all_to_all(o, VIEWS[0], split_axis=1, concat_axis=2, tiled=True)


def _to_heads(x: jax.Array, parts: ViewParts) -> jax.Array:
    """Exchanges all heads of this device's views for this device's heads of all views.

    [B, each * P, N, D] becomes [B, S * P, N / devices, D], for any P.
    """
    tokens = x.shape[1] // parts.each
    x = lax.all_to_all(x, VIEWS[0], split_axis=2, concat_axis=1, tiled=True)
    return x[:, : parts.views * tokens]


def plan_parts(spec: AttentionStrategy, query: TokenLayout, heads: int) -> Sent:
    """Chooses how devices share a layer: of the exact ways, the one that sends less.

    Args:
        spec: strategy of the layer.
        query: layout of the tokens of a device, in parts.
        heads: N.

    Raises:
        InputError: no way is exact; with what to do.
    """
    parts = query.parts
    assert parts is not None
    if spec.own_view_only:
        return Sent("own views", 0.0)
    others = (parts.devices - 1) / parts.devices
    tokens = parts.filled * query.tokens_per_view
    key = spec.keys_left(query)
    few, kept = key.parts is None, key.whole.tokens
    # Summed up over devices, the few come in twice: parts of the sums, then the sums.
    base = spec.agreed_tokens(query) + (4 * kept * others if few else 0.0)
    ways: dict[Way, float] = {}
    if "heads" in spec.apart and heads % parts.devices == 0:
        moved = 2 * tokens + (0 if few else 2 * parts.filled * key.tokens_per_view)
        ways["heads"] = base + others * moved / parts.devices
    if "queries" in spec.apart:
        ways["queries"] = base + (0 if few else 2 * others * parts.filled * key.tokens_per_view)
    if not ways:
        if "heads" in spec.apart:
            why = f"has to be split by heads, and {heads} heads do not divide by {parts.devices}"
            remedy = "choose a number of devices that divides them"
        else:
            why = "cannot be split over devices"
            remedy = "choose another, such as dense or sla, or leave out compute.mesh"
        raise InputError(f"compute.mesh: attention {spec.name} {why}; {remedy}")
    way = min(ways, key=lambda way: ways[way])
    return Sent(way, ways[way])
