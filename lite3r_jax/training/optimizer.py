"""AdamW and Muon with warm-up and a schedule, over flat dictionaries of parameters."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lite3r_jax.errors import InputError
from lite3r_jax.training.parameters import matching

if TYPE_CHECKING:
    import optax


@dataclass(frozen=True)
class OptimizerOptions:
    """Settings of the optimizer and of its learning rate.

    Attributes:
        name: adamw (arXiv 1711.05101), or muon (arXiv 2502.16982) for the matrices that `muon`
            names and AdamW for the rest.
        learning_rate: highest learning rate.
        schedule: what follows the warm-up: cosine and linear fall to
            `learning_rate * final_lr_scale`, which they reach when all steps are done.
        warmup: updates over which the rate rises linearly; the first update has
            learning_rate / warmup.
        final_lr_scale: last rate over the highest, for cosine and linear.
        decay_steps: with schedule constant: updates at the end of the run over which the rate
            falls linearly to `learning_rate * final_lr_scale`; 0 for none.
        weight_decay: of the parameters that `decay` names, times the learning rate.
        decay: regular expression for the paths of parameters that have weight decay.
        muon: regular expression for the paths of parameters that Muon updates. Their last two
            dimensions are the matrix; any before them are layers.
        b1: momentum of Adam.
        b2: decay of Adam's second moment.
        eps: of Adam.
    """

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-4
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: int = 0
    final_lr_scale: float = 0.0
    decay_steps: int = 0
    weight_decay: float = 0.01
    decay: str = r"(kernel|proj_lin)$"
    muon: str = r"blocks/.*kernel$"
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        """Raises `InputError` for settings that are out of range or contradict each other."""
        if not (self.learning_rate > 0 and self.warmup >= 0 and 0 <= self.final_lr_scale <= 1):
            raise InputError(
                "optimizer: expected learning_rate > 0, warmup >= 0 and 0 <= final_lr_scale <= 1,"
                f" got {self.learning_rate}, {self.warmup} and {self.final_lr_scale}"
            )
        if self.decay_steps < 0 or (self.decay_steps and self.schedule != "constant"):
            raise InputError(
                "optimizer.decay_steps: expected 0, or more with schedule=constant, got"
                f" {self.decay_steps} with {self.schedule}"
            )
        if not (self.weight_decay >= 0 and 0 <= self.b1 < 1 and 0 <= self.b2 < 1 and self.eps > 0):
            raise InputError(
                "optimizer: expected weight_decay >= 0, b1 and b2 in [0, 1) and eps > 0, got"
                f" {self.weight_decay}, {self.b1}, {self.b2} and {self.eps}"
            )


def learning_rate(options: OptimizerOptions, steps: int) -> Callable[[Any], jax.Array]:
    """Returns the learning rate as a function of the number of updates so far.

    Args:
        options: warm-up and schedule.
        steps: updates of the whole run; a run of more keeps the last rate.
    """

    def rate(updates: Any) -> jax.Array:
        done = jnp.asarray(updates, jnp.float32)
        warm = jnp.minimum(1.0, (done + 1) / max(1, options.warmup))
        left = jnp.clip((steps - done) / max(1, options.decay_steps), 0, 1)
        after = jnp.clip((done - options.warmup) / max(1, steps - options.warmup), 0, 1)
        shapes = {
            "cosine": 0.5 * (1 + jnp.cos(jnp.pi * after)),
            "linear": 1 - after,
            "constant": left if options.decay_steps else 1,
        }
        return (
            options.learning_rate
            * warm
            * (options.final_lr_scale + (1 - options.final_lr_scale) * shapes[options.schedule])
        )

    return rate


def make_optimizer(
    options: OptimizerOptions, arrays: Mapping[str, Any], steps: int
) -> "optax.GradientTransformation":
    """Returns the optimizer of the trained parameters, for gradients that are clipped already.

    Args:
        options: which optimizer, and its settings.
        arrays: path -> trained parameter, or anything with a shape.
        steps: updates of the whole run.

    Raises:
        InputError: `decay` with a weight decay, or `muon` with that optimizer, names no parameter,
            or `muon` one that is no matrix.
    """
    import optax

    paths = list(arrays)
    decayed = {} if not options.weight_decay else matching(options.decay, paths, "optimizer.decay")
    mask = {path: path in decayed for path in paths}
    rate = learning_rate(options, steps)
    if options.name == "adamw":
        return optax.adamw(
            rate,
            b1=options.b1,
            b2=options.b2,
            eps=options.eps,
            weight_decay=options.weight_decay,
            mask=mask,
        )
    matrices = matching(options.muon, paths, "optimizer.muon")
    if flat := [path for path in matrices if np.ndim(arrays[path]) < 2]:
        raise InputError(f"optimizer.muon: {flat[0]} is no matrix; name kernels only")
    return optax.chain(
        optax.partition(
            {
                "muon": _muon(),
                "adam": optax.scale_by_adam(options.b1, options.b2, options.eps),
            },
            {path: "muon" if path in matrices else "adam" for path in paths},
        ),
        optax.add_decayed_weights(options.weight_decay, mask),
        optax.scale_by_learning_rate(rate),
    )


def _muon() -> "optax.GradientTransformation":
    """Returns Muon: orthogonalized momentum, scaled to the size of Adam's updates.

    See arXiv 2502.16982, eq. 4.
    """
    import optax
    from optax import contrib

    def matrices(params: Any) -> Any:
        return jax.tree.map(lambda _: contrib.MuonDimensionNumbers(-2, -1), params)

    def to_size(updates: Any, _: Any) -> Any:
        return jax.tree.map(lambda x: 0.2 * max(x.shape[-2:]) ** 0.5 * x, updates)

    return optax.chain(
        contrib.scale_by_muon(weight_dimension_numbers=matrices), optax.stateless(to_size)
    )
