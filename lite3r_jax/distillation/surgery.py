"""Finds the stacks of blocks of a model and their attention strategies, and replaces parts."""

from dataclasses import dataclass
from typing import Any

from flax import nnx

from lite3r_jax.attention.dense import Dense
from lite3r_jax.layers.block import Block

Place = tuple[Any, ...]
"""Attributes and indices from a model down to one of its modules or variables."""


@dataclass(frozen=True)
class Stack:
    """Blocks with one parameter tree for all layers, and their attention strategies.

    Attributes:
        blocks: place of the `Block`.
        cores: place of the list of its strategies, one per run of layers.
        replaced: for each of these, whether it is another than the teacher's dense attention.
    """

    blocks: Place
    cores: Place
    replaced: tuple[bool, ...]

    @property
    def name(self) -> str:
        """Path of the blocks in the model."""
        return path_of(self.blocks)


def stacks(model: nnx.Module) -> tuple[Stack, ...]:
    """Returns all stacks of blocks of a model, each with the attention strategies of its layers.

    Beside blocks called `NAME_blocks` stands their list of strategies, `NAME_cores`; beside blocks
    of any other name it is `cores`.
    """
    result = []
    for place, node in nnx.iter_graph(model):
        if isinstance(node, Block):
            name = str(place[-1])
            other = name.removesuffix("blocks") + "cores" if name.endswith("blocks") else "cores"
            cores = (*place[:-1], other)
            replaced = tuple(not isinstance(core.spec, Dense) for core in node_at(model, cores))
            result.append(Stack(place, cores, replaced))
    return tuple(result)


def node_at(model: Any, place: Place) -> Any:
    """Returns the module or variable at a place of a model."""
    for key in place:
        model = model[key] if isinstance(key, int) else getattr(model, key)
    return model


def put(model: Any, place: Place, node: Any) -> None:
    """Replaces the module or variable at a place of a model."""
    parent, key = node_at(model, place[:-1]), place[-1]
    if isinstance(key, int):
        parent[key] = node
    else:
        setattr(parent, key, node)


def path_of(place: Place) -> str:
    """Returns a place as a path with "/" between its parts, as in converted weights."""
    return "/".join(map(str, place))


def variables(model: nnx.Module) -> dict[str, tuple[Place, nnx.Variable]]:
    """Returns all variables of a model: path -> (place, variable)."""
    return {
        path_of(place): (place, node)
        for place, node in nnx.iter_graph(model)
        if isinstance(node, nnx.Variable)
    }
