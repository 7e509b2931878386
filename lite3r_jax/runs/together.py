"""A reconstruction by several processes: process 0 writes, and says to the others what is next.

Settings of evaluations and benchmarks are checked here too; what their processes send is in
`evaluation/together.py`.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax

from lite3r_jax import exports
from lite3r_jax.data.known_cameras import KnownCameras
from lite3r_jax.data.photos import UnopenedScene
from lite3r_jax.errors import InputError, printable
from lite3r_jax.experiment import Experiment, to_config
from lite3r_jax.infer.report import environment
from lite3r_jax.mesh import devices_of
from lite3r_jax.processes import every_value, refuse_different
from lite3r_jax.progress import Progress
from lite3r_jax.refine import RefineOptions

if TYPE_CHECKING:
    from lite3r_jax.runs.reconstruct import Reconstructions

NO_MORE = -1
"""Sent in place of the number of a scene when there are no more scenes."""
_ALIKE = ("backbone", "images", "video", "cameras", "compute")


def check_together(experiment: Experiment) -> None:
    """Raises if settings do not go with several processes.

    Raises:
        InputError: naming the setting.
    """
    if not experiment.processes.coordinator:
        return
    if not devices_of(experiment.compute.mesh):
        raise InputError(
            "processes.coordinator: several processes share the views of a scene; set"
            " compute.mesh=view:N, N the number of the devices of all of them"
        )
    if experiment.video.chunk:
        raise InputError(
            f"video.chunk={experiment.video.chunk}: is for one process; leave it or"
            " processes.coordinator out"
        )


def next_scene(number: int) -> int:
    """Broadcasts from process 0 the number of the scene that all compute now, or `NO_MORE`.

    Args:
        number: of the scene, or `NO_MORE`; it counts in process 0 only.
    """
    return every_value(number)[0]


def same_everywhere(
    experiment: Experiment,
    model: Mapping[str, Any],
    scenes: Sequence[UnopenedScene],
    known: KnownCameras | None,
) -> None:
    """Raises if processes would compute different scenes; all processes have to call it.

    Settings, weights, versions, known cameras, and names and sizes of the photos count; where their
    files lie does not.

    Args:
        experiment: the settings.
        model: from `models.CheckedModel.identity`.
        scenes: of the input.
        known: cameras of the photos, where there are any.

    Raises:
        InputError: naming a process that differs from process 0.
    """
    if jax.process_count() == 1:
        return
    settings = to_config(experiment).to_dict()
    settings["cameras"]["known"] = known and [
        [each.name, each.size, each.extrinsics.tolist(), each.lens, each.distortion]
        for each in known.cameras
    ]
    files = [path for scene in scenes for path in scene.files if os.path.exists(path)]
    body = {
        "settings": {name: settings[name] for name in _ALIKE},
        "points": experiment.export.points.source,
        "model": model,
        "versions": environment()["versions"],
        "files": [[os.path.basename(path), os.path.getsize(path)] for path in files],
    }
    refuse_different(body, "settings, weights, photos, cameras or versions")


def follow(experiment: Experiment) -> "Reconstructions":
    """Computes the scenes that process 0 names, and writes nothing; all other processes call it.

    Args:
        experiment: the settings of all.

    Returns:
        The scenes that failed, without folders.

    Raises:
        InputError: as `reconstruct_files`.
    """
    from lite3r_jax.runs.reconstruct import (
        Reconstructions,
        SceneRun,
        build,
        check,
        find,
        known_cameras,
        open_scene,
    )

    experiment = replace(experiment, refine=RefineOptions(), quiet=True)
    hidden, points = Progress(show=False), experiment.export.points.source
    scenes = find(experiment)
    opened = {}
    if len(scenes) == 1:
        opened[scenes[0].name] = open_scene(experiment, scenes[0], hidden)
    known = known_cameras(experiment, scenes, opened)
    checked = check(experiment, points, hidden)
    same_everywhere(experiment, checked.identity(), scenes, known)
    built = build(experiment, checked, points, hidden)
    formats = exports.parse_formats(experiment.formats)
    run = SceneRun(experiment, built, known, formats, len(scenes) > 1)
    del built
    failures: dict[str, str] = {}
    while (number := next_scene(NO_MORE)) != NO_MORE:
        scene = scenes[number]
        try:
            run.reconstructor.take_part(
                lambda scene=scene: opened.get(scene.name) or open_scene(experiment, scene, hidden)
            )
        except InputError as error:
            if len(scenes) == 1:
                raise
            print(f"error: {printable(scene.name)}: {printable(error)}", file=sys.stderr)
            failures[scene.name] = str(error)
    return Reconstructions({}, failures)
