"""Student and teacher as one module that holds the parameters they share once."""

import re
from collections.abc import Collection
from typing import Any

from flax import nnx

from lite3r_jax.attention.plan import Plan
from lite3r_jax.distillation.surgery import put, variables
from lite3r_jax.layers.rngs import traced_rngs

STUDENT = "student"


class Pair(nnx.Module):
    """A student and its teacher as one module with shared parameters.

    Variables that both have are the student's own, in both, so that `nnx.split` finds one array
    under `student/`; only what is trained has an original under `teacher/`.
    """

    def __init__(self, student: Any, teacher: Any):
        self.student = student
        self.teacher = teacher


def make_pair(student: Any, trained: Collection[str], plan: Plan | None = None) -> Pair:
    """Makes a `Pair` of a student and the teacher that it was made from.

    Args:
        student: a backbone with the teacher's weights, before it is trained; arrays may be
            abstract. Its precision may be simulated, the teacher's never is.
        trained: paths of parameters in the student that will change.
        plan: the teacher's attention, of strategies without parameters; dense when None.
    """
    teacher = nnx.eval_shape(
        lambda: type(student)(
            student.config, heads=student.heads, plan=plan, dtype=student.dtype, rngs=traced_rngs(0)
        )
    )
    own = variables(student)
    for path, (place, _) in variables(teacher).items():
        variable = own[path][1]
        if path in trained:
            variable = variable.replace(variable.get_value())
        put(teacher, place, variable)
    return Pair(student, teacher)


def selectors(trained: Collection[str]) -> tuple[str, ...]:
    """Returns regular expressions of the paths of a `Pair`'s trained parameters.

    They are for `training.parameters.split`.
    """
    return tuple(f"^{STUDENT}/{re.escape(path)}$" for path in sorted(trained))


def of_student(arrays: dict[str, Any]) -> dict[str, Any]:
    """Returns the student's arrays of a `Pair` by their paths in the student."""
    prefix = f"{STUDENT}/"
    return {p.removeprefix(prefix): x for p, x in arrays.items() if p.startswith(prefix)}
