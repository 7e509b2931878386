"""Subsets of a source's scenes or frames, and the rule that holds some out of training."""

from collections.abc import Mapping, Sequence

from lite3r_jax.data.views import Scores, Views, ViewSource
from lite3r_jax.errors import InputError

HELD_OUT = 10
"""Number of scenes, or of frames, of which one is held out of training."""


class SceneSubset:
    """A source limited to some frames of some scenes; implements `data.views.ViewSource`.

    Attributes:
        scenes: names of the scenes in the subset.
    """

    def __init__(self, source: ViewSource, frames: Mapping[str, Sequence[int]]):
        """Stores the source and which of its scenes and frames belong to the subset.

        Args:
            source: reader of the scenes.
            frames: scene -> numbers of its frames that belong to the subset.
        """
        self.scenes = tuple(frames)
        self._source = source
        self._frames = {scene: tuple(numbers) for scene, numbers in frames.items()}

    def frames(self, scene: str) -> tuple[int, ...]:
        """Returns the numbers of a scene's frames in the subset."""
        return self._frames[scene]

    def pairs(self, scene: str) -> Scores | None:
        """Returns the overlap scores of the source, also of frames outside the subset."""
        return self._source.pairs(scene)

    def read(self, scene: str, frames: Sequence[int], size: tuple[int, int]) -> Views:
        """Implements `ViewSource.read`: reads frames of a scene from the source."""
        return self._source.read(scene, frames, size)


def hold_out(source: ViewSource, views: int) -> tuple[SceneSubset, SceneSubset]:
    """Splits a source into a part to train on and a part that is held out.

    Of ten scenes or more every tenth is held out. Of fewer scenes the last tenth of the frames of
    each, but at least `views` of them; scenes with fewer than twice `views` are trained on whole.

    Args:
        source: all scenes.
        views: number of views that a sample of either part needs.

    Returns:
        (to train on, held out).

    Raises:
        InputError: there are too few frames.
    """
    last = source.scenes[HELD_OUT - 1 :: HELD_OUT]
    if last:
        kept = {s: source.frames(s) for s in source.scenes if s not in set(last)}
        return SceneSubset(source, kept), SceneSubset(source, {s: source.frames(s) for s in last})
    training, held = {}, {}
    for scene in source.scenes:
        frames = source.frames(scene)
        cut = len(frames) - max(views, len(frames) // HELD_OUT)
        if cut < views:
            cut = len(frames)
        else:
            held[scene] = frames[cut:]
        training[scene] = frames[:cut]
    if not held:
        raise InputError(
            f"{type(source).__name__}: no scene has {2 * views} frames, {views} of which would be"
            " held out for evaluations; add some, or set config.train.loop.evaluate_every=0"
        )
    return SceneSubset(source, training), SceneSubset(source, held)
