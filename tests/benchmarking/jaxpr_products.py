"""Operations of the matrix products and convolutions in a traced function, one by one."""

import math

import jax


def products(function, *args):
    """(operations, operations in one turn of loops whose length is not known)."""
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr):
    total = unknown = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            length = math.prod(equation.invars[0].aval.shape[i] for i in contracted)
            total += 2 * length * math.prod(equation.outvars[0].aval.shape)
            continue
        if name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            out = params["dimension_numbers"].rhs_spec[0]
            total += (
                2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // kernel[out]
            )
            continue
        times = params["length"] if name == "scan" else 1
        for inner in jax.tree.leaves(list(params.values()), is_leaf=is_jaxpr):
            if is_jaxpr(inner):
                some, open_ended = _count(getattr(inner, "jaxpr", inner))
                if name == "while":
                    some, open_ended = 0, some + open_ended
                total += times * some
                unknown += times * open_ended
    return total, unknown


def is_jaxpr(x):
    return hasattr(x, "eqns") or hasattr(getattr(x, "jaxpr", None), "eqns")
