"""Protocols: which frames of which scenes of a data source are evaluated, and at which size.

| source | scenes | frames of N views |
|---|---|---|
| synthetic:SPLIT | 64 of a held-out split of the generated world | frozen, `data/lists` |
| synthetic:SPLIT@frames=F | 64, F frames along a path | evenly spaced, in order |
| blendedmvs:FOLDER | the 7 official validation scenes, 4 samples each | by rule from pair.txt |
| dtu64:FOLDER | the 13 scans | frame 33, then evenly spaced ones of the others; 64: all |
| motorcycle | Middlebury 2014 pair that scikit-image ships | both |
| any other | all | evenly spaced |

Lists for data that is not in the package cannot be written down without it. They are made by a rule
that depends on nothing but pair.txt and the number of frames, and every result names the frames
that it is of. Rules are in the rows of the registry, `data.sources`.
"""

from dataclasses import dataclass

from lite3r_jax.data.sources import parse_source
from lite3r_jax.data.views import SceneSource
from lite3r_jax.errors import InputError


@dataclass(frozen=True)
class Item:
    """One sample of a protocol.

    Attributes:
        scene: id of the scene.
        frames: in order; the first is the reference view.
    """

    scene: str
    frames: tuple[int, ...]


@dataclass(frozen=True)
class Protocol:
    """A list of samples to evaluate, from one data source, with one number of views and size.

    Attributes:
        name: what results call the source, see `SourceSpec.label`.
        views: of each sample.
        size: (height, width) of the images.
        items: the samples.
    """

    name: str
    views: int
    size: tuple[int, int]
    items: tuple[Item, ...]


def open_protocol(
    source: str, *, views: int = 2, size: tuple[int, int] | None = None, scenes: int = 0
) -> tuple[Protocol, SceneSource]:
    """Open a data source and choose the samples of its evaluation.

    Args:
        source: see `data.registry`.
        views: of each sample.
        size: (height, width); None: that of the registry, 112 x 112 of the generated world,
            518 x 518 of most other data.
        scenes: only so many samples, the first of the list; 0: all.

    Raises:
        InputError: no such source, no data, no ground truth, or not so many views.
    """
    if views < 1 or scenes < 0:
        raise InputError(f"views and scenes: expected at least 1 and 0, got {views} and {scenes}")
    spec = parse_source(source)
    if not spec.row.has_ground_truth:
        raise InputError(
            f"{source}: has no cameras to compare with; evaluate on a capture with a COLMAP model"
        )
    if spec.weight != 1:
        raise InputError(f"{source}: weights are for mixtures that are trained on; leave it out")
    reader = spec.open("evaluation")
    items = [Item(scene, frames) for scene, frames in spec.row.evaluation(reader, views)]
    if not items:
        raise InputError(f"{source}: has no samples")
    chosen = tuple(items[: scenes or None])
    return Protocol(spec.label, views, size or spec.row.size, chosen), reader
