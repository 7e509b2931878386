"""The settings of a distillation."""

from dataclasses import asdict, dataclass, field
from typing import Literal

from lite3r_jax.attention.core import Plan
from lite3r_jax.attention.presets import PRESETS
from lite3r_jax.attention.presets import plan as plan_by_name
from lite3r_jax.distill.trainable import Trainable
from lite3r_jax.errors import InputError


@dataclass(frozen=True)
class AttentionOptions:
    """The student's attention; see `attention.sla.SLA`, which has the same names.

    Attributes:
        routing: how keys are chosen.
        keep: fraction of the keys, or of their blocks, that softmax sees.
        low: fraction that nothing sees; block3 only.
        block: keys per block.
        q_block: queries per block; 0 for twice as many as keys.
        protect: whether special tokens and the reference view are always seen; not for token.
        phi: feature map of the linear part.
        init: standard deviation of the first proj_lin; 0 for zeros.
    """

    routing: Literal["block", "block3", "token"] = "block"
    keep: float = 0.3
    low: float = 0.0
    block: int = 64
    q_block: int = 0
    protect: bool = True
    phi: Literal["elu1", "softmax", "relu"] = "elu1"
    init: float = 1e-3


@dataclass(frozen=True)
class MatchOptions:
    """How the student is held to its teacher's attention.

    Attributes:
        inputs: "own": the student runs as a whole beside the teacher, and gradients go through its
            trunk. "teacher": every attention layer of the student gets what the teacher's gets, so
            that layers learn apart from each other, no gradient goes through the trunk, and there
            is no task loss.
        sites: which attention outputs are compared: "replaced", those where the student's strategy
            is not the teacher's; "all"; or roles with commas between (patch, frame, global,
            camera).
        weight: of the comparison in the objective, at the first step; 0 for none at any step.
        end: its weight at the last step.
        schedule: cosine goes from one to the other, constant stays at `weight`.
    """

    inputs: Literal["own", "teacher"] = "own"
    sites: str = "replaced"
    weight: float = 0.1
    end: float = 0.01
    schedule: Literal["cosine", "constant"] = "cosine"

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if not (self.weight >= 0 and self.end >= 0):
            raise InputError(
                "distill.match: weight and end have to be 0 or more, got"
                f" {self.weight} and {self.end}"
            )


@dataclass(frozen=True)
class DistillOptions:
    """Student and objective. The teacher is `config.weights`, dense.

    Attributes:
        plan: where the student's attention is another: sla_global or sla_paper, see
            `attention.presets`; "" for training without a teacher.
        attention: which attention that is.
        trainable: what is trained, see `distill.trainable.trained_paths`.
        rank: of `lora`.
        precision: which matrix products are simulated with few bits, see `precision.preset`.
        targets: what the task loss takes for the truth: "truth", cameras and depth of the data;
            "teacher", what the teacher predicts, for photos of which nothing is known; "none", no
            task loss.
        match: see `MatchOptions`.
        start: folder of a student with the same teacher, plan and trained parameters, to go on
            from; "" begins at the teacher.
        compare: rows that are evaluated when all steps are done, see `evaluate.rows.parse_rows`, on
            what `config.evaluate` says; "" for none.
    """

    plan: str = ""
    attention: AttentionOptions = field(default_factory=AttentionOptions)
    trainable: Trainable = "proj_lin"
    rank: int = 16
    precision: str = "none"
    targets: Literal["truth", "teacher", "none"] = "truth"
    match: MatchOptions = field(default_factory=MatchOptions)
    start: str = ""
    compare: str = ""

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if self.rank < 1:
            raise InputError(f"distill.rank: expected at least 1, got {self.rank}")
        if self.targets == "none" and not self.match.weight:
            raise InputError(
                "distill: targets none and match.weight 0 leave no objective; set one of them"
            )
        if self.match.inputs == "teacher" and (self.targets != "none" or not self.match.weight):
            raise InputError(
                "distill.match.inputs teacher: layers learn apart, so there is no task loss; set"
                " distill.targets=none and a match.weight above 0"
            )

    def student_plan(self) -> Plan:
        """The plan of the student.

        Raises:
            InputError: the plan is unknown or changes nothing, or a setting is out of range.
        """
        settings = asdict(self.attention) | {"q_block": self.attention.q_block or None}
        if self.plan not in PRESETS or self.plan == "dense":
            raise InputError(
                f"distill.plan: {self.plan!r} is no plan of a student; choose from"
                f" {', '.join(name for name in PRESETS if name != 'dense')}"
            )
        try:
            return plan_by_name(self.plan, **settings)
        except ValueError as error:
            raise InputError(f"distill.attention: {error}") from error
