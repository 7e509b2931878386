"""Camera options of a run: known cameras, and how the model finds unknown ones."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lite3r_jax.backbones.base import KNOWN_CAMERAS, POINTS
from lite3r_jax.data.known_cameras import KnownCameras, read_known_cameras
from lite3r_jax.data.photos import PhotoSet
from lite3r_jax.errors import InputError, did_you_mean
from lite3r_jax.infer.alignment import World
from lite3r_jax.scene import PointSource

AUTO = "auto"


@dataclass(frozen=True)
class CameraOptions:
    """Options for known cameras and for how a model finds cameras.

    A model declares what it can be asked for in `Backbone.choices` and `Backbone.inputs`.

    Attributes:
        known: file or folder with the cameras of all photos of one scene, see
            `data.known_cameras.read_known_cameras`; empty for none.
        world: with known cameras, whose world the scene is in: theirs, with depth in their unit
            ("known"), or the model's, with the known cameras moved into it ("predicted").
        reference: how the reference view is chosen; Depth Anything 3: saddle_balanced (which auto
            is), saddle_sim_range, middle or first, of 3 or more views.
        poses: where cameras come from; Depth Anything 3: camera, its camera head (which auto is),
            or ray, its rays, which take longer.
        choices: further choices of the model, as NAME=VALUE with commas between.
    """

    known: str = ""
    world: World = "known"
    reference: str = AUTO
    poses: str = AUTO
    choices: str = ""

    def heads(self, model: Any) -> tuple[str, ...]:
        """Returns the heads of the model that these options need besides the usual ones.

        Args:
            model: a model, or its class.

        Raises:
            InputError: as `arguments`.
        """
        needed = [
            model.choices[name].values[value]
            for name, value in self.arguments(model, bool(self.known)).items()
        ]
        needed += [model.inputs[KNOWN_CAMERAS].head] if self.known else []
        return tuple(dict.fromkeys(head for head in needed if head is not None))

    def arguments(self, model: Any, known: bool) -> dict[str, Any]:
        """Returns the arguments of a model's call besides images and known cameras.

        Args:
            model: a model, or its class.
            known: whether there are known cameras.

        Raises:
            InputError: this model does not have such a choice; an unknown one; choices that
                contradict each other.
        """
        kind = (model if isinstance(model, type) else type(model)).__name__
        if known and KNOWN_CAMERAS not in model.inputs:
            raise InputError(
                f"cameras.known: {kind} takes no known cameras; leave them out, or use a"
                " model that does (configs/da3_*.py)"
            )
        if not known and self.world != CameraOptions.world:
            raise InputError(
                f"cameras.world: {self.world} without known cameras; set cameras.known"
            )
        asked = {"reference": self.reference, "poses": self.poses} | self._further()
        options: dict[str, Any] = {}
        for name, text in asked.items():
            if text == AUTO:
                continue
            if name not in model.choices:
                raise InputError(
                    f"cameras.{name}: {kind} has no such choice{did_you_mean(name, model.choices)};"
                    f" leave it {AUTO}"
                )
            choice = model.choices[name]
            if known and choice.without == KNOWN_CAMERAS:
                raise InputError(
                    f"cameras.{name}: {text} has no effect with known cameras; leave one of the two"
                    " out"
                )
            values = {str(value).lower(): value for value in choice.values}
            if text not in values:
                raise InputError(
                    f"cameras.{name}: expected one of {', '.join((AUTO, *values))}, got {text!r}"
                )
            options[name] = values[text]
        return options

    def with_points(self, model: Any, source: PointSource) -> "CameraOptions":
        """Returns options that also ask for the head's points, if wanted and a choice of the model.

        Args:
            model: a model, or its class.
            source: where the points of the scene come from.
        """
        if source != "head" or POINTS not in model.choices:
            return self
        return replace(self, choices=",".join(filter(None, (self.choices, f"{POINTS}=true"))))

    def _further(self) -> dict[str, str]:
        further = {}
        for part in filter(None, (part.strip() for part in self.choices.split(","))):
            name, equals, value = (word.strip() for word in part.partition("="))
            if not (name and equals and value):
                raise InputError(f"cameras.choices: expected NAME=VALUE, got {part!r}")
            further[name] = value
        return further

    def read(self, scenes: Sequence[PhotoSet]) -> KnownCameras | None:
        """Reads the known cameras, one for every photo; None if no file of cameras is named.

        Raises:
            InputError: as `read_known_cameras` and `KnownCameras.of`; more than one scene.
        """
        if not self.known:
            return None
        if len(scenes) != 1:
            raise InputError(
                f"cameras.known: {self.known} is of one scene, the input has {len(scenes)};"
                " reconstruct them one by one"
            )
        known = read_known_cameras(self.known)
        known.of(scenes[0].photos)
        return known
