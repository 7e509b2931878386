"""Which parameters are trained, and models as flat dictionaries of arrays.

A path is the place of a parameter in the model, "/" between the parts, as in converted weights:
`aggregator/global_blocks/attn/qkv/kernel`. Stacked layers are one parameter.
"""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx

from lite3r_jax.errors import InputError
from lite3r_jax.weights.save import to_host

Arrays = dict[str, jax.Array]
"""Path -> array."""


@dataclass(frozen=True)
class Layout:
    """A model without its arrays: what turns them back into the model.

    Attributes:
        graph: structure of the model.
        variables: path -> (key of nnx, variable without a value worth having).
    """

    graph: Any
    variables: Mapping[str, tuple[tuple[Any, ...], nnx.Variable]]

    def merge(self, *parts: Mapping[str, jax.Array]) -> Any:
        """The model with these arrays; together the parts hold every path once."""
        arrays = {path: array for part in parts for path, array in part.items()}
        flat = [(key, old.replace(arrays[path])) for path, (key, old) in self.variables.items()]
        return nnx.merge(self.graph, nnx.from_flat_state(flat))


def split(
    model: nnx.Module, trainable: Sequence[str] = (".*",), count: int | None = None
) -> tuple[Layout, Arrays, Arrays]:
    """Take a model apart into what is trained and what is not.

    The arrays are those of the model, not copies of them. State that is no `nnx.Param` is never
    trained.

    Args:
        model: any NNX module; abstract arrays will do.
        trainable: regular expressions; a parameter is trained if one of them is found in its path.
        count: how many scalars that has to be; None if it does not matter.

    Returns:
        (layout, trained arrays, frozen arrays).

    Raises:
        InputError: an expression is none or finds nothing, or the count is another.
    """
    graph, state = nnx.split(model)
    variables = {"/".join(map(str, key)): (key, v) for key, v in nnx.to_flat_state(state)}
    chosen: set[str] = set()
    names = [path for path, (_, v) in variables.items() if isinstance(v, nnx.Param)]
    for pattern in trainable:
        matched = matching(pattern, names, "trainable")
        chosen.update(matched)
    arrays = {path: v.get_value() for path, (_, v) in variables.items()}
    trained = {path: x for path, x in arrays.items() if path in chosen}
    frozen = {path: x for path, x in arrays.items() if path not in chosen}
    if count is not None and (got := size(trained)) != count:
        raise InputError(
            f"trainable: {', '.join(trainable)} is {got:,} parameters, expected {count:,};"
            " correct the expressions or the count"
        )
    # Values would be kept alive, or traced, with the layout.
    blank = {p: (key, v.replace(jax.ShapeDtypeStruct(np.shape(arrays[p]), arrays[p].dtype)))
             for p, (key, v) in variables.items()}  # fmt: skip
    return Layout(graph, blank), trained, frozen


def matching(pattern: str, paths: Sequence[str], setting: str) -> list[str]:
    """The paths in which a regular expression is found.

    Args:
        pattern: the expression.
        paths: to look in.
        setting: where the expression stands, for messages.

    Raises:
        InputError: it is no expression, or is found nowhere.
    """
    try:
        matched = [path for path in paths if re.search(pattern, path)]
    except re.error as error:
        raise InputError(f"{setting}: {pattern!r} is no regular expression ({error})") from error
    if not matched:
        examples = ", ".join(sorted(paths)[:: max(1, len(paths) // 4)][:4])
        raise InputError(
            f"{setting}: {pattern!r} is in the path of no parameter; paths are like {examples}"
        )
    return matched


def size(arrays: Mapping[str, Any]) -> int:
    """Number of scalars."""
    return sum(math.prod(np.shape(x)) for x in arrays.values())


def digest(arrays: Mapping[str, jax.Array]) -> str:
    """SHA-256 of paths, dtypes, shapes and values; the same whatever the sharding.

    Every process has to call it: an array that is spread over processes is gathered, one at a time.
    """
    digest = hashlib.sha256()
    for path in sorted(arrays):
        host = to_host(arrays[path])
        digest.update(f"{path} {host.dtype} {host.shape}\n".encode())
        digest.update(np.ascontiguousarray(host).view(np.uint8).reshape(-1).data)
    return digest.hexdigest()
