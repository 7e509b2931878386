"""What is said about a student beside its teacher."""

import pytest

from lite3r_jax.evaluation.verdict import verdicts


def entry(row, abs_rel, auc, spread=0.01):
    values = {"abs_rel": abs_rel, "auc_30": auc}
    metrics = {
        name: {"value": x, "low": x - spread, "high": x + spread} for name, x in values.items()
    }
    return {
        "variant": row, "protocol": "synthetic:test", "views": 2, "samples": 24, "metrics": metrics
    }  # fmt: skip


@pytest.mark.parametrize(
    "student,outcome",
    [
        ((0.105, 0.895), "no difference that 24 samples show at 95%"),
        ((0.2, 0.9), "worse than its teacher"),
        ((0.1, 0.8), "worse than its teacher"),
        ((0.05, 0.9), "better than its teacher"),
        ((0.1, 0.95), "better than its teacher"),
        ((0.05, 0.8), "better in one, worse in the other"),
    ],
)
def test_a_difference_counts_beyond_the_interval(student, outcome):
    rows = [entry("dense-float32", 0.1, 0.9), entry("untrained-float32", 1, 0.1)]
    (sentence,) = verdicts([*rows, entry("student-float32", *student)])
    assert sentence == (
        f"verdict: student-float32, 2 views, {outcome}: AbsRel {student[0]:.4f} (teacher 0.1000),"
        f" AUC@30 {student[1]:.3f} (teacher 0.900)."
    )


def test_without_a_student_or_without_figures_nothing_is_claimed():
    assert verdicts([entry("dense-float32", 0.1, 0.9), entry("sla-float32", 0.1, 0.9)]) == []
    rows = [entry("untrained-float32", 0.1, 0.9), entry("student-float32", 0.1, 0.9)]
    assert verdicts(rows) == []  # nothing says what the teacher can do
    bare = entry("student-float32", 0.1, 0.9) | {"metrics": {"abs_rel": {"value": None}}}
    (sentence,) = verdicts([entry("dense-float32", 0.1, 0.9), bare])
    assert sentence == "verdict: student-float32, 2 views, nothing could be compared."
