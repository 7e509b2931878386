"""The settings of `--mode=eval`."""

import re
from dataclasses import dataclass, field

from lite3r_jax.errors import InputError
from lite3r_jax.evaluate.protocols import Folders
from lite3r_jax.evaluate.score import ScoreOptions


@dataclass(frozen=True)
class EvaluateOptions:
    """What is evaluated, and how.

    Attributes:
        protocols: with commas between, see `protocols.PROTOCOLS`; NAME/VIEWS for other views than
            `views`.
        views: numbers of views with commas between; a protocol is run with each.
        size: HEIGHTxWIDTH of the images; "" for that of the protocol.
        scenes: only so many samples of each list, the first ones; 0: all.
        rows: models with commas between, ATTENTION-PRECISION each, see `rows.parse_rows`. What the
            others predict is also compared with the first.
        student: folder of a distilled student, for rows such as student-bfloat16.
        score: what is measured.
        folders: where datasets are.
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
    rows: str = "dense-float32"
    student: str = ""
    score: ScoreOptions = field(default_factory=ScoreOptions)
    folders: Folders = field(default_factory=Folders)
    pictures: int = 2
    batch: int = 1
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if self.pictures < 0:
            raise InputError(f"evaluate.pictures: expected 0 or more, got {self.pictures}")

    def pixels(self) -> tuple[int, int] | None:
        """`size` as numbers.

        Raises:
            InputError: it is not of that form.
        """
        if not self.size:
            return None
        if not (found := re.fullmatch(r"(\d{1,5})x(\d{1,5})", self.size)):
            raise InputError(f"evaluate.size: expected HEIGHTxWIDTH, got {self.size!r}")
        return int(found[1]), int(found[2])

    def tasks(self) -> tuple[tuple[str, int], ...]:
        """(protocol, views) of everything that is to be done, each once.

        Raises:
            InputError: there is none, or views are no numbers.
        """
        found: dict[tuple[str, int], None] = {}
        for entry in _parts(self.protocols):
            name, slash, views = entry.partition("/")
            for count in [views] if slash else _parts(self.views):
                if not re.fullmatch(r"[1-9]\d{0,3}", count):
                    raise InputError(
                        f"evaluate.views: expected numbers of views, got {count!r} for {name!r}"
                    )
                found[name, int(count)] = None
        if not found:
            raise InputError("evaluate.protocols, evaluate.views: expected at least one of each")
        return tuple(found)


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
