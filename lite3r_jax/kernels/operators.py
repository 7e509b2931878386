"""All operators with several implementations, by name, and the self-checks of their kernels."""

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from lite3r_jax.kernels.block_map import check as block_map_check
from lite3r_jax.kernels.block_map.api import OPERATOR as BLOCK_MAP
from lite3r_jax.kernels.dense import check as dense_check
from lite3r_jax.kernels.dense.api import OPERATOR as DENSE
from lite3r_jax.kernels.fp8 import check as fp8_check
from lite3r_jax.kernels.fp8.fused import OPERATOR as FP8
from lite3r_jax.kernels.registry import Check, Operator
from lite3r_jax.kernels.sla import check as sla_check
from lite3r_jax.kernels.sla.api import OPERATOR as SLA
from lite3r_jax.kernels.window_attention import check as window_check
from lite3r_jax.kernels.window_attention.api import OPERATOR as WINDOW_ATTENTION


def by_name(*operators: Operator[Any]) -> Mapping[str, Operator[Any]]:
    """Returns the operators as a mapping from their names.

    Raises:
        ValueError: two operators have one name.
    """
    names = [operator.name for operator in operators]
    if len(set(names)) < len(names):
        raise ValueError(f"two operators of one name: {', '.join(names)}")
    return MappingProxyType(dict(zip(names, operators, strict=True)))


# Cases of an implementation, by its name, for every operator with kernels that need a proof.
Checks = Callable[[str], Iterable[Check[Any]]]

OPERATORS = by_name(DENSE, SLA, BLOCK_MAP, FP8, WINDOW_ATTENTION)
CHECKS: Mapping[str, Checks] = MappingProxyType(
    {
        "dense": dense_check.checks,
        "sla": sla_check.checks,
        "block_map": block_map_check.checks,
        "fp8": fp8_check.checks,
        "window_attention": window_check.checks,
    }
)
