"""Takes models apart into flat dictionaries of arrays, trained and frozen, and back.

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
"""Arrays of a model by the paths of its parameters."""


@dataclass(frozen=True)
class Layout:
    """The structure of a model without its arrays; `merge` turns arrays into the model again.

    Attributes:
        graph: structure of the model.
        variables: path -> (key of nnx, variable that has a shape and dtype as its value).
    """

    graph: Any
    variables: Mapping[str, tuple[tuple[Any, ...], nnx.Variable]]

    def merge(self, *parts: Mapping[str, jax.Array]) -> Any:
        """Returns the model with the given arrays; together the parts hold every path once."""
        arrays = {path: array for part in parts for path, array in part.items()}
        flat = [(key, old.replace(arrays[path])) for path, (key, old) in self.variables.items()]
        return nnx.merge(self.graph, nnx.from_flat_state(flat))


def split(
    model: nnx.Module, trainable: Sequence[str] = (".*",), count: int | None = None
) -> tuple[Layout, Arrays, Arrays]:
    """Take a model apart into its structure, its trained arrays and its frozen arrays.

    The arrays are those of the model, not copies of them. State that is no `nnx.Param` is never
    trained.

    Args:
        model: any NNX module; abstract arrays will do.
        trainable: regular expressions; a parameter is trained if one of them is found in its path.
        count: how many scalars have to be trained; None if it does not matter.

    Returns:
        (layout, trained arrays, frozen arrays).

    Raises:
        InputError: an expression is not valid or matches no parameter, or the count is another.
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
    """Returns the paths in which a regular expression is found.

    Args:
        pattern: the expression.
        paths: to look in.
        setting: where the expression stands, for messages.

    Raises:
        InputError: the expression is not valid, or is found in no path.
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
    """Returns the total number of scalars in arrays."""
    return sum(math.prod(np.shape(x)) for x in arrays.values())


def digest(arrays: Mapping[str, jax.Array]) -> str:
    """Returns the SHA-256 of paths, dtypes, shapes and values of arrays, whatever the sharding.

    Every process has to call this: arrays that are spread over processes are gathered, one at a
    time.
    """
    digest = hashlib.sha256()
    for path in sorted(arrays):
        host = to_host(arrays[path])
        digest.update(f"{path} {host.dtype} {host.shape}\n".encode())
        digest.update(np.ascontiguousarray(host).view(np.uint8).reshape(-1).data)
    return digest.hexdigest()
