"""Choice of the reference view (depth_anything_3/model/reference_view_selector.py)."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax

from lite3r_jax.errors import InputError
from lite3r_jax.mesh import VIEWS, ViewParts

Strategy = Literal["saddle_balanced", "saddle_sim_range", "middle", "first"]
# Scenes of fewer views stay in their order (utils/constants.py: THRESH_FOR_REF_SELECTION).
LEAST_VIEWS = 3


def check_strategy(strategy: str) -> None:
    """Raises an error if the strategy of choosing the reference view is unknown.

    Raises:
        InputError: it is unknown.
    """
    if strategy not in get_args(Strategy):
        raise InputError(
            f"reference: {strategy!r} is not known; choose one of: {', '.join(get_args(Strategy))}"
        )


def balance_scores(tokens: jax.Array) -> dict[str, jax.Array]:
    """Computes the scores by which "saddle_balanced" chooses, see `select_reference`.

    Args:
        tokens: [B, S, C] class tokens.

    Returns:
        `similarity`, `length`, `variance` [B, S] of each view, the same stretched to [0, 1] over
        the views of a scene under `.._scaled`, and `balance`, the sum of their distances from 0.5.
    """
    tokens = tokens.astype(jnp.float32)
    length = jnp.linalg.norm(tokens, axis=-1)
    raw = {
        "similarity": _similarities(tokens).sum(-1) / (tokens.shape[1] - 1),
        "length": length,
        "variance": jnp.var(tokens / length[..., None], axis=-1, ddof=1),
    }

    def stretch(x: jax.Array) -> jax.Array:
        low, high = x.min(1, keepdims=True), x.max(1, keepdims=True)
        return (x - low) / (high - low + 1e-8)

    scaled = {f"{name}_scaled": stretch(x) for name, x in raw.items()}
    balance = sum((jnp.abs(x - 0.5) for x in scaled.values()), jnp.zeros_like(length))
    return raw | scaled | {"balance": balance}


def similarity_range(tokens: jax.Array) -> jax.Array:
    """Returns the largest minus the smallest similarity of each view to the others [B, S].

    The similarity of a view to itself counts as 0.
    """
    similarity = _similarities(tokens.astype(jnp.float32))
    return similarity.max(-1) - similarity.min(-1)


def select_reference(tokens: jax.Array, strategy: Strategy) -> jax.Array:
    """Chooses the reference view of every scene.

    "saddle_balanced": the view that is nearest to the middle in three respects, mean similarity to
    the others, length of the class token and variance of its direction. The direction's variance is
    nearly constant, so that rounding counts: another device or dtype may choose another view.
    "saddle_sim_range": the view with the largest range of similarities; where all similarities are
    positive, the two most similar views tie but for rounding. "middle" is S // 2, "first" is 0.

    Args:
        tokens: [B, S, C] class tokens.
        strategy: see above.

    Returns:
        [B] int32.

    Raises:
        InputError: an unknown strategy.
    """
    check_strategy(strategy)
    b, s, _ = tokens.shape
    if strategy == "first" or s == 1:
        return jnp.zeros(b, jnp.int32)
    if strategy == "middle":
        return jnp.full(b, s // 2, jnp.int32)
    if strategy == "saddle_balanced":
        return jnp.argmin(balance_scores(tokens)["balance"], axis=1).astype(jnp.int32)
    return jnp.argmax(similarity_range(tokens), axis=1).astype(jnp.int32)


def reference_first(reference: jax.Array, views: int) -> jax.Array:
    """Returns the order that puts the reference view first and keeps that of the other views.

    Args:
        reference: [B] index of the reference view.
        views: S.

    Returns:
        [B, S] int32: position in the new order -> view.
    """
    position = jnp.arange(views, dtype=jnp.int32)
    reference = reference[:, None].astype(jnp.int32)
    order = jnp.where(position <= reference, position - 1, position)
    return jnp.where(position == 0, reference, order)


def take_views(x: jax.Array, order: jax.Array) -> jax.Array:
    """Returns x [B, S, ...] with its views in the order `order` [B, S]."""
    return jax.vmap(lambda one, index: one[index])(x, order)


def restore_views(x: jax.Array, order: jax.Array) -> jax.Array:
    """Undoes `take_views` with the same order."""
    return take_views(x, jnp.argsort(order, axis=1))


def move_views(
    x: jax.Array, reference: jax.Array, parts: ViewParts | None, *, back: bool = False
) -> jax.Array:
    """Moves the reference view to the front, or back to its place, also across devices.

    This is `take_views` by `reference_first`, or its inverse. With views in parts every device
    sends one or two views.

    Args:
        x: [B, S, ...], or [B, filled, ...] of views in parts.
        reference: [B] index of the reference view.
        parts: the devices that the views are on, or None.
        back: whether to move the reference view back to its place.
    """
    if parts is None:
        order = reference_first(reference, x.shape[1])
        return restore_views(x, order) if back else take_views(x, order)
    n, each = parts.devices, parts.each

    def of_device(x: jax.Array, reference: jax.Array) -> jax.Array:
        at = (parts.first() + jnp.arange(each)).reshape(1, each, *[1] * (x.ndim - 2))
        last = reference.reshape(-1, *[1] * (x.ndim - 1))
        if back:  # those before the reference view go one to the front, the first goes to its place
            single = parts.choose(x, jnp.zeros_like(reference)[:, None])
            edge = lax.ppermute(x[:, :1], VIEWS[0], [(i, (i - 1) % n) for i in range(n)])
            shifted = jnp.concatenate([x[:, 1:], edge], axis=1)
            return jnp.where(at == last, single, jnp.where(at < last, shifted, x))
        single = parts.choose(x, reference[:, None])
        edge = lax.ppermute(x[:, -1:], VIEWS[0], [(i, (i + 1) % n) for i in range(n)])
        shifted = jnp.concatenate([edge, x[:, :-1]], axis=1)
        return jnp.where(at == 0, single, jnp.where(at <= last, shifted, x))

    return parts.on_each(of_device, (1, None), 1)(x, reference)


def _similarities(tokens: jax.Array) -> jax.Array:
    """Returns cosine similarities between views [B, S, S], minus the identity matrix."""
    direction = tokens / jnp.linalg.norm(tokens, axis=-1, keepdims=True)
    cosine = jnp.einsum("bic,bjc->bij", direction, direction, precision=lax.Precision.HIGHEST)
    return cosine - jnp.eye(tokens.shape[1])
