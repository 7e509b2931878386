"""What a run says about cameras: which are known, and how the model finds the others."""

import inspect
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lite3r_jax.data.known_cameras import KnownCameras, read_known_cameras
from lite3r_jax.data.photos import PhotoSet
from lite3r_jax.errors import InputError
from lite3r_jax.infer.alignment import World

AUTO = "auto"


@dataclass(frozen=True)
class CameraOptions:
    """Known cameras, and choices of how cameras are found.

    What a model can be asked for stands in the signature of its call: `reference` and `poses` with
    their choices, and `extrinsics` and `intrinsics` if it takes known cameras.

    Attributes:
        known: file or folder with the cameras of all photos of one scene, see
            `data.known_cameras.read_known_cameras`; empty for none.
        world: with known cameras, whose world the scene is in: theirs, with depth in their unit
            ("known"), or the model's, with the known cameras moved into it ("predicted").
        reference: how the reference view is chosen; Depth Anything 3: saddle_balanced (which auto
            is), saddle_sim_range, middle or first, of 3 or more views.
        poses: where cameras come from; Depth Anything 3: camera, its camera head (which auto is),
            or ray, its rays, which take longer.
    """

    known: str = ""
    world: World = "known"
    reference: str = AUTO
    poses: str = AUTO

    @property
    def heads(self) -> tuple[str, ...]:
        """Heads that are needed besides the usual ones."""
        return ("ray",) * (self.poses == "ray") + ("prior",) * bool(self.known)

    def arguments(self, model: Any, known: bool) -> dict[str, Any]:
        """What the call of a model is given for these options besides images and known cameras.

        Args:
            model: a model, or its class.
            known: whether there are known cameras.

        Raises:
            InputError: this model does not have such a choice; an unknown one; choices that
                contradict each other.
        """
        kind = model if inspect.isclass(model) else type(model)
        taken = inspect.signature(kind.__call__).parameters
        hints = typing.get_type_hints(kind.__call__)
        if known and not {"extrinsics", "intrinsics"} <= set(taken):
            raise InputError(
                f"cameras.known: {kind.__name__} takes no known cameras; leave them out, or use a"
                " model that does (configs/da3_*.py)"
            )
        if not known and self.world != CameraOptions.world:
            raise InputError(
                f"cameras.world: {self.world} without known cameras; set cameras.known"
            )
        if known and self.reference != AUTO:
            raise InputError(
                f"cameras.reference: {self.reference} has no effect with known cameras; leave one"
                " of the two out"
            )
        asked = {"reference": self.reference, "poses": self.poses}
        asked = {name: choice for name, choice in asked.items() if choice != AUTO}
        for name, choice in asked.items():
            if name not in taken:
                raise InputError(
                    f"cameras.{name}: {kind.__name__} has no such choice; leave it {AUTO}"
                )
            choices = typing.get_args(hints.get(name))
            if choices and choice not in choices:
                raise InputError(
                    f"cameras.{name}: expected one of {', '.join((AUTO, *choices))}, got {choice!r}"
                )
        return asked

    def read(self, scenes: Sequence[PhotoSet]) -> KnownCameras | None:
        """The known cameras, if there are any, checked to have one for every photo.

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
