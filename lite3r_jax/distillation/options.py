"""The settings of a distillation."""

from dataclasses import dataclass, field
from typing import Literal

from lite3r_jax.attention.dense import Dense
from lite3r_jax.attention.plan import Plan
from lite3r_jax.attention.presets import DEFAULT, parse_plan
from lite3r_jax.distillation.trainable import Trainable
from lite3r_jax.errors import InputError


@dataclass(frozen=True)
class MatchOptions:
    """Settings of the comparison of attention outputs between student and teacher.

    Attributes:
        mode: "end_to_end": the student runs as a whole beside the teacher, and gradients go through
            its trunk. "layerwise": every attention layer of the student gets the input of the
            teacher's layer, so that layers learn apart from each other, no gradient goes through
            the trunk, and there is no task loss.
        sites: which attention outputs are compared: "replaced", those where the student's strategy
            is not the teacher's; "all"; or roles with commas between (patch, frame, global,
            camera).
        weight: of the comparison in the objective, at the first step; 0 for none at any step.
        final_weight: its weight at the last step.
        schedule: cosine goes from one to the other, constant stays at `weight`.
    """

    mode: Literal["end_to_end", "layerwise"] = "end_to_end"
    sites: str = "replaced"
    weight: float = 0.1
    final_weight: float = 0.01
    schedule: Literal["cosine", "constant"] = "cosine"

    def __post_init__(self) -> None:
        """Raises `InputError` for a negative weight."""
        if not (self.weight >= 0 and self.final_weight >= 0):
            raise InputError(
                "distill.match: weight and final_weight have to be 0 or more, got"
                f" {self.weight} and {self.final_weight}"
            )


@dataclass(frozen=True)
class DistillOptions:
    """Settings of a distillation: student and objective; the teacher is `config.weights`, dense.

    Attributes:
        plan: the student's attention, as `sla_global(keep=0.3)`, see `attention.presets`; "" for
            training without a teacher.
        trainable: what is trained, see `distillation.trainable.trained_paths`.
        rank: rank of the low-rank parts of `lora`.
        precision: which matrix products are simulated with few bits, see `precision.preset`.
        targets: what the task loss takes for the truth: "truth", cameras and depth of the data;
            "teacher", what the teacher predicts, for photos of which nothing is known; "none", no
            task loss.
        match: see `MatchOptions`.
        init_from: folder of a student with the same teacher, plan and trained parameters, to go on
            from; "" begins at the teacher.
        final_variants: variants that are evaluated when all steps are done, see
            `evaluation.variants.parse_variants`, on what `config.evaluate` says; "" for none.
    """

    plan: str = ""
    trainable: Trainable = "strategy"
    rank: int = 16
    precision: str = "none"
    targets: Literal["truth", "teacher", "none"] = "truth"
    match: MatchOptions = field(default_factory=MatchOptions)
    init_from: str = ""
    final_variants: str = ""

    def __post_init__(self) -> None:
        """Raises `InputError` for settings that are out of range or contradict each other."""
        if self.rank < 1:
            raise InputError(f"distill.rank: expected at least 1, got {self.rank}")
        if self.targets == "none" and not self.match.weight:
            raise InputError(
                "distill: targets none and match.weight 0 leave no objective; set one of them"
            )
        if self.match.mode == "layerwise" and (self.targets != "none" or not self.match.weight):
            raise InputError(
                "distill.match.mode layerwise: layers learn apart, so there is no task loss; set"
                " distill.targets=none and a match.weight above 0"
            )

    def student_plan(self) -> Plan:
        """Returns the attention plan of the student.

        Raises:
            InputError: the plan is unknown or changes nothing, or a setting is out of range.
        """
        plan = parse_plan(self.plan, "distill.plan")
        if all(isinstance(spec, Dense) for spec in (plan.default, *(r.spec for r in plan.rules))):
            raise InputError(
                f"distill.plan: {self.plan!r} is the teacher's attention; choose one for the"
                f" student, such as {DEFAULT}"
            )
        return plan
