"""The result of one evaluated sample, and its JSON."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lite3r_jax.errors import InputError
from lite3r_jax.metrics import Metrics, NotAvailable, PairErrors

Pairs = Mapping[str, tuple[float | None, ...]]


def pairs_of(errors: PairErrors, prefix: str = "") -> Pairs:
    """Converts errors of view pairs to a record's form, under names that begin with `prefix`."""
    return {
        f"{prefix}rotation_deg": tuple(float(x) for x in errors.rotation),
        f"{prefix}direction_deg": tuple(None if x != x else float(x) for x in errors.direction),
    }


@dataclass(frozen=True, eq=False)
class Record:
    """The result of one evaluated sample: its metrics, or why there are none.

    Attributes:
        scene: its id in the dataset.
        frames: numbers of its frames, in order; the first is the reference view.
        metrics: name -> value; empty after a failure.
        pairs: rotation_deg and direction_deg of all pairs of views (`metrics.PairErrors`), None
            where the direction is not defined; empty without cameras.
        cameras: true world-to-camera extrinsics in the frame of the first view, rows of 12 numbers,
            in the unit of the sample.
        failure: why there is no result; "" if there is one.
    """

    scene: str
    frames: tuple[int, ...]
    metrics: Metrics = field(default_factory=dict)
    pairs: Pairs = field(default_factory=dict)
    cameras: tuple[tuple[float, ...], ...] = ()
    failure: str = ""

    def to_json(self) -> dict[str, Any]:
        """Returns the record as a JSON object, which `from_json` reads."""
        if self.failure:
            return {"scene": self.scene, "frames": list(self.frames), "failure": self.failure}
        missing = {n: v.reason for n, v in self.metrics.items() if isinstance(v, NotAvailable)}
        return {
            "scene": self.scene,
            "frames": list(self.frames),
            "metrics": {n: v for n, v in self.metrics.items() if n not in missing},
            "not_available": missing,
            "pairs": {name: list(values) for name, values in self.pairs.items()},
            "cameras": [list(row) for row in self.cameras],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str) -> "Record":
        """Builds a record from its JSON object.

        Raises:
            InputError: naming `where`, if the object is not of that form.
        """
        try:
            metrics: Metrics = {n: float(v) for n, v in data.get("metrics", {}).items()}
            missing = data.get("not_available", {})
            metrics |= {name: NotAvailable(str(reason)) for name, reason in missing.items()}
            return cls(
                str(data["scene"]),
                tuple(int(frame) for frame in data["frames"]),
                metrics,
                {
                    str(name): tuple(None if v is None else float(v) for v in values)
                    for name, values in data.get("pairs", {}).items()
                },
                tuple(tuple(float(v) for v in row) for row in data.get("cameras", ())),
                str(data.get("failure", "")),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise InputError(
                f"{where}: is no result of an evaluation ({error}); delete it"
            ) from error
