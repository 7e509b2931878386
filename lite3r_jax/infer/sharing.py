"""How several devices share the views of a scene, for the report of a run."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lite3r_jax.attention.view_parts import Way, plan_parts
from lite3r_jax.mesh import ViewParts


@dataclass(frozen=True)
class Sharing:
    """How several devices share the views of a scene.

    Attributes:
        devices: how many.
        views_each: views of a device.
        filled_up: views that are computed twice so that all devices have equally many.
        layers: (way, bytes that a device gets from the others in one layer, layers with these) of
            the layers over all views.
    """

    devices: int
    views_each: int
    filled_up: int
    layers: tuple[tuple[Way, int, int], ...]

    def to_json(self) -> dict[str, Any]:
        """Returns the sharing as plain data, for report.json."""
        return {
            "mesh": f"view:{self.devices}",
            "views_each": self.views_each,
            "filled_up": self.filled_up,
            "attention": [
                {"way": way, "bytes_received_per_layer": size, "layers": count}
                for way, size, count in self.layers
            ],
        }


def describe_sharing(body: Mapping[str, Any]) -> str:
    """Describes data of `Sharing.to_json` in one line of text."""
    ways = ", ".join(
        f"{each['way'] if each['way'] == 'own views' else 'by ' + each['way']} in"
        f" {each['layers']} layers ({each['bytes_received_per_layer'] / 2**20:,.1f} MiB to a device"
        " in each)"
        for each in body["attention"]
    )
    filled = f", {body['filled_up']} twice to fill up" if body["filled_up"] else ""
    return f"{body['mesh']}, {body['views_each']} views each{filled}; attention over views {ways}"


def without_values(model: Any) -> Any:
    """Returns a model with shapes in place of its parameters, so that it does not keep them."""
    graph, state = nnx.split(model)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    return nnx.merge(graph, shapes)


def share_views(model: Any, parts: ViewParts, height: int, width: int) -> Sharing:
    """Determines how the layers over all views of a model share the views among devices.

    Args:
        model: a backbone whose views may be in parts.
        parts: the devices.
        height: of the network images in pixels.
        width: likewise.

    Raises:
        InputError: attention of a layer cannot be split.
    """
    patch = model.patch_size
    whole = model.scene_tokens(parts.views, (height // patch, width // patch))
    query = replace(whole, views=parts.each, parts=parts)
    role = model.roles()["global"]
    token = role.heads * role.head_dim * jnp.dtype(role.dtype or model.dtype).itemsize
    counts: dict[tuple[Way, int], int] = {}
    for spec in model.plan.specs("global", role.layers, parts.views):
        sent = plan_parts(spec, query, role.heads)
        share = sent.way, round(sent.tokens * token)
        counts[share] = counts.get(share, 0) + 1
    layers: tuple[tuple[Way, int, int], ...] = tuple((*share, n) for share, n in counts.items())
    return Sharing(parts.devices, parts.each, parts.filled - parts.views, layers)
