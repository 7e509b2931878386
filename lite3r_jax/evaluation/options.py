"""The settings of `--mode=eval` and `--mode=probe`."""

import re
from dataclasses import dataclass, field

from lite3r_jax.data.sources import split_sources
from lite3r_jax.errors import InputError
from lite3r_jax.evaluation.score import ScoreOptions


@dataclass(frozen=True)
class ProbeOptions:
    """Settings of a probe, layer by layer; its data is that of `EvaluateOptions`.

    Attributes:
        plan: attention of one role, such as key_views(choose=stride,every=4) or
            sla_global(keep=0.1), without layers.
        layers: numbers of layers with commas between; "" for all of the role.
        threshold: a layer is sensitive if an error grows by more than this factor.
        budget: the plan has at most this share of the operations of a whole pass with dense
            attention, and the other attention in as few layers as that takes, those that lose
            least; 0: it is in all layers that are not sensitive.
        budget_views: views of the scene whose operations are counted; 0: as many as are evaluated.
        tokens: samples of each list, the first ones, whose tokens behind the last layer over all
            views are compared with those of dense attention; 0: none.
    """

    plan: str = "key_views(choose=stride,every=4)"
    layers: str = ""
    threshold: float = 1.05
    budget: float = 0.0
    budget_views: int = 0
    tokens: int = 4


@dataclass(frozen=True)
class EvaluateOptions:
    """Settings of an evaluation: protocols, variants, metrics and bootstrap.

    Attributes:
        protocols: data sources with commas between, such as synthetic:test or dtu64:FOLDER, see
            `data.registry`; SOURCE@VIEWS for other views than `views`.
        views: numbers of views with commas between; a protocol is run with each.
        size: HEIGHTxWIDTH of the images; "" for that of the protocol.
        scenes: only so many samples of each list, the first ones; 0: all.
        variants: models with commas between, ATTENTION-PRECISION each, see
            `variants.parse_variants`; dense-float32+refine is the same with refined cameras and
            depth. What the others predict is also compared with the first.
        student: folder of a distilled student, for variants such as student-bfloat16.
        score: what is measured.
        pictures: so many samples of each list, the first ones, are shown in pictures by
            report.html; 0: none.
        batch: samples that a device handles at a time.
        resamples: draws for the intervals.
        seed: of the draws.
    """

    protocols: str = "synthetic:test"
    views: str = "2"
    size: str = ""
    scenes: int = 0
    variants: str = "dense-float32"
    student: str = ""
    score: ScoreOptions = field(default_factory=ScoreOptions)
    pictures: int = 2
    batch: int = 1
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises `InputError` if `pictures` is negative."""
        if self.pictures < 0:
            raise InputError(f"evaluate.pictures: expected 0 or more, got {self.pictures}")

    def pixels(self) -> tuple[int, int] | None:
        """Returns `size` as (height, width), or None if it is empty.

        Raises:
            InputError: `size` is not HEIGHTxWIDTH.
        """
        if not self.size:
            return None
        if not (sides := re.fullmatch(r"(\d{1,5})x(\d{1,5})", self.size)):
            raise InputError(f"evaluate.size: expected HEIGHTxWIDTH, got {self.size!r}")
        return int(sides[1]), int(sides[2])

    def tasks(self) -> tuple[tuple[str, int], ...]:
        """Returns (protocol, number of views) of every evaluation to run, each once.

        Raises:
            InputError: there is no evaluation to run, or views are no numbers.
        """
        tasks: dict[tuple[str, int], None] = {}
        for entry in split_sources(self.protocols):
            name, at, views = entry.rpartition("@")
            if not at or "=" in views:  # an option of the source
                name, at = entry, ""
            for count in [views] if at else _parts(self.views):
                if not re.fullmatch(r"[1-9]\d{0,3}", count):
                    raise InputError(
                        f"evaluate.views: expected numbers of views, got {count!r} for {name!r}"
                    )
                tasks[name, int(count)] = None
        if not tasks:
            raise InputError("evaluate.protocols, evaluate.views: expected at least one of each")
        return tuple(tasks)


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
