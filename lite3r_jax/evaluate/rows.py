"""The models of a table: one for each row, that is attention x precision."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jax.numpy as jnp

from lite3r_jax.attention.presets import PRESETS, plan
from lite3r_jax.distill.checkpoint import load_student, read_student
from lite3r_jax.errors import InputError
from lite3r_jax.precision import Kind, deploy, preset
from lite3r_jax.weights.load import load

STUDENT, UNTRAINED = "student", "untrained"
ATTENTION = (*PRESETS, STUDENT, UNTRAINED)
PRECISION = ("float32", "bfloat16", "fp8_weight_only", "fp8_dynamic")
HEADS = ("camera", "depth")


@dataclass(frozen=True)
class Row:
    """A model.

    Attributes:
        attention: a name of `attention.presets`; or student: that of a distilled student; or
            untrained: that of the same student before its first step. Presets other than dense
            take the teacher's weights as they are, too: the parameters that they add have their
            first values, nothing has learned to use them.
        precision: dtype of weights and compute, or a kind of `precision.deploy`.
    """

    attention: str
    precision: str

    @property
    def name(self) -> str:
        """ATTENTION-PRECISION."""
        return f"{self.attention}-{self.precision}"


def parse_rows(text: str, student: str = "", where: str = "evaluate.rows") -> tuple[Row, ...]:
    """Rows from ATTENTION-PRECISION, commas between.

    ATTENTION is dense, sla_global, sla_paper, student or untrained; PRECISION is float32, bfloat16,
    fp8_weight_only or fp8_dynamic.

    Args:
        text: the rows.
        student: folder of the student; needed by the rows student and untrained.
        where: name of the setting, for messages.

    Raises:
        InputError: a row that is none, one twice, none at all, or no student.
    """
    rows = []
    for name in [part.strip() for part in text.split(",") if part.strip()]:
        attention, _, precision = name.partition("-")
        if attention not in ATTENTION or precision not in PRECISION:
            raise InputError(
                f"{where}: expected ATTENTION-PRECISION of {', '.join(ATTENTION)} and"
                f" {', '.join(PRECISION)}, got {name!r}"
            )
        if attention in (STUDENT, UNTRAINED) and not student:
            raise InputError(f"{where.rpartition('.')[0]}.student: not set, but {name!r} needs it")
        rows.append(Row(attention, precision))
    if not rows or len(set(rows)) < len(rows):
        raise InputError(f"{where}: expected at least one row and each once, got {text!r}")
    return tuple(rows)


def held_dtype(row: Row) -> Any:
    """The dtype that weights are loaded in; those that become float8 are rounded once, from it."""
    return jnp.dtype("float32" if row.precision.startswith("fp8") else row.precision)


def build_row(row: Row, weights: str | Path, student: str = "", *, dtype: Any = None) -> Any:
    """The model of a row, with camera and depth head.

    Args:
        row: which.
        weights: of the teacher, as for `load`.
        student: folder of the student.
        dtype: compute dtype of rows with float8 weights; None: bfloat16.

    Raises:
        InputError: weights or student cannot be read, or do not fit together.
    """
    low = row.precision.startswith("fp8")
    held = held_dtype(row)
    compute = (dtype or jnp.bfloat16) if low else held
    kinds = {"heads": HEADS, "dtype": compute, "param_dtype": held}
    rules = "default"
    if row.attention in (STUDENT, UNTRAINED):
        made = read_student(Path(student))[0]
        # a student that was trained under simulated float8 is deployed with the same rules; in
        # full precision it runs as the weights are
        rules = rules if made.precision == "none" else made.precision
        if row.attention == STUDENT:
            model = load_student(student, weights, simulate=False, **kinds)
        else:
            model = load(weights, plan=made.plan, **kinds)
    else:
        model = load(weights, plan=plan(row.attention), **kinds)
    return deploy(model, preset(rules), cast(Kind, row.precision)) if low else model
