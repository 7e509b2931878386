"""Means over masked elements as (sum, count), and the quantile filter."""

from dataclasses import dataclass
from fractions import Fraction

import jax
import jax.numpy as jnp
from jax import lax

from lite3r_jax.errors import InputError

MIN_KEPT = 1000
"""The quantile filter needs, and leaves, more elements than this."""
MAX_DENOMINATOR = 10_000


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Masked:
    """A mean that can still be merged: `a + b` is the mean over the elements of both.

    Attributes:
        sum: float32, sum over the valid elements.
        count: int32, how many these are.
    """

    sum: jax.Array
    count: jax.Array

    @classmethod
    def of(cls, values: jax.Array, mask: jax.Array) -> "Masked":
        """Sums and counts `values` where `mask` (broadcast) is true; others may hold anything."""
        mask = jnp.broadcast_to(mask, values.shape)
        return cls(jnp.where(mask, values, 0).sum(), mask.sum(dtype=jnp.int32))

    @property
    def mean(self) -> jax.Array:
        """The mean sum / count; 0 with gradient 0 when there are no elements."""
        return jnp.where(self.count > 0, self.sum / jnp.maximum(self.count, 1), 0)

    def __add__(self, other: "Masked") -> "Masked":
        """Returns sum and count over the elements of both."""
        return Masked(self.sum + other.sum, self.count + other.count)


def filter_by_quantile(values: jax.Array, mask: jax.Array, quantile: float | None) -> Masked:
    """Sums the elements below a quantile (training/loss.py: filter_by_quantile, torch_quantile).

    The threshold is the k-th smallest of the valid elements, see `quantile_rank`. Elements strictly
    below it stay when they are more than 1000, otherwise all do, which is always so for 1000
    elements or fewer.

    This is inherently a rule about the whole batch: the filters of parts do not merge to the
    filter of the whole. It needs counts only, so a sharded array is neither sorted nor gathered,
    and it looks at all elements, where upstream samples a million from more than 10^8.

    Args:
        values: float32, any shape, finite where valid.
        mask: same shape, bool.
        quantile: in (0, 1], at most four decimals; None keeps everything.

    Returns:
        What stays. The choice itself has no gradient.

    Raises:
        InputError: quantile out of range or too fine.
    """
    if quantile is None:
        return Masked.of(values, mask)
    k = quantile_rank(quantile, mask.sum(dtype=jnp.int32))
    threshold = kth_smallest(lax.stop_gradient(values), mask, k)
    kept = mask & (values < threshold)
    return Masked.of(values, jnp.where(kept.sum(dtype=jnp.int32) > MIN_KEPT, kept, mask))


def quantile_rank(quantile: float, n: jax.Array | int) -> jax.Array:
    """Returns the rank of a quantile among n elements, round(quantile * (n - 1)) + 1.

    Halves are rounded to even, and the rank is exact for every int32 n. float32 could not tell
    halves apart for the n of a batch of images. The quantile is taken as the decimal number it is
    written as, at most four decimals.
    """
    p, d = as_ratio("quantile", quantile)
    whole, part = jnp.divmod(jnp.maximum(jnp.asarray(n, jnp.int32) - 1, 0), d)
    base, rest = jnp.divmod(p * part, d)
    base = base + whole * p
    up = (2 * rest > d) | ((2 * rest == d) & (base % 2 == 1))
    return base + up + 1


def kth_smallest(values: jax.Array, mask: jax.Array, k: jax.Array | int) -> jax.Array:
    """Finds the k-th smallest element of a masked array, by bisection on the bits of float32.

    The result is exact. 32 counts take the place of a sort: linear in the size, and counts of
    shards simply add.

    Args:
        values: float32, any shape, no NaN where valid.
        mask: same shape, bool.
        k: scalar, 1 for the smallest, up to the number of valid elements.

    Returns:
        The scalar value; NaN when k is out of range.
    """
    sign = jnp.uint32(1 << 31)
    bits = lax.bitcast_convert_type(values.astype(jnp.float32), jnp.uint32)
    # Unsigned integers in the order of the floats: flip negatives, lift positives above them.
    keys = jnp.where(bits >= sign, ~bits, bits | sign)

    def step(i: jax.Array, bits: jax.Array) -> jax.Array:
        trial = bits | (sign >> jnp.uint32(i))
        below = (mask & (keys < trial)).sum(dtype=jnp.int32)
        return jnp.where(below < k, trial, bits)

    key = lax.fori_loop(0, 32, step, jnp.uint32(0))
    value = lax.bitcast_convert_type(jnp.where(key >= sign, key ^ sign, ~key), jnp.float32)
    return jnp.where((k >= 1) & (k <= mask.sum(dtype=jnp.int32)), value, jnp.nan)


def as_ratio(name: str, quantile: float) -> tuple[int, int]:
    """Returns a decimal number in (0, 1] as numerator and denominator.

    Raises:
        InputError: out of range, or more than four decimals.
    """
    if not 0 < quantile <= 1:
        raise InputError(f"{name}: expected a number in (0, 1], got {quantile}; None keeps all")
    ratio = Fraction(str(quantile))
    if ratio.denominator > MAX_DENOMINATOR:
        raise InputError(f"{name}: expected at most four decimals, got {quantile}; round it")
    return ratio.numerator, ratio.denominator
