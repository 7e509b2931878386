"""Abstract models: shapes and dtypes of all parameters, without allocating arrays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lite3r_jax.attention.plan import Plan
from lite3r_jax.backbones.base import BackboneEntry
from lite3r_jax.layers.rngs import traced_rngs


@dataclass(frozen=True)
class AbstractModel:
    """A model as its structure and its variables by path, whose values may still be missing.

    Attributes:
        shapes: path, "/" between parts -> shape.
        dtypes: path -> dtype in which the model holds it.
    """

    graph: Any
    variables: Mapping[str, tuple[tuple[Any, ...], nnx.Variable]]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every variable by path."""
        return {path: tuple(variable.shape) for path, (_, variable) in self.variables.items()}

    @property
    def dtypes(self) -> dict[str, np.dtype]:
        """Dtype of every variable by path."""
        return {path: np.dtype(variable.dtype) for path, (_, variable) in self.variables.items()}

    def astype(self, dtypes: Mapping[str, np.dtype]) -> "AbstractModel":
        """Returns the model with other dtypes for its arrays.

        Args:
            dtypes: path -> dtype for exactly the paths of `shapes`.
        """
        return AbstractModel(
            self.graph,
            {
                path: (key, variable.replace(jax.ShapeDtypeStruct(variable.shape, dtypes[path])))
                for path, (key, variable) in self.variables.items()
            },
        )

    def fill(self, arrays: Mapping[str, jax.Array]) -> nnx.Module:
        """Returns the model with the given arrays as its parameters.

        Args:
            arrays: path -> array for exactly the paths of `shapes`.
        """
        flat = [
            (key, variable.replace(arrays[path]))
            for path, (key, variable) in self.variables.items()
        ]
        return nnx.merge(self.graph, nnx.from_flat_state(flat))


def abstract_model(
    backbone: BackboneEntry,
    config: Any,
    *,
    heads: Sequence[str],
    plan: Plan | None = None,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
) -> AbstractModel:
    """Traces the construction of a model, without computing its parameters.

    Raises:
        ValueError: the model has state that is no parameter and so would stay without a value.
    """
    model = nnx.eval_shape(
        lambda: backbone.build(
            config,
            heads=heads,
            plan=plan,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=traced_rngs(0),
        )
    )
    arrays = abstract_of(model)
    if others := [n for n, (_, v) in arrays.variables.items() if not isinstance(v, nnx.Param)]:
        raise ValueError(f"state that is no parameter: {others[:5]}")
    return arrays


def abstract_of(model: nnx.Module) -> AbstractModel:
    """Returns a built model as an `AbstractModel`: parameters, and stored codes and scales."""
    graph, state = nnx.split(model)
    return AbstractModel(
        graph, {"/".join(map(str, key)): (key, v) for key, v in nnx.to_flat_state(state)}
    )
