"""`--mode=reconstruct`: inputs to folders of results, scene by scene."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lite3r_jax import export
from lite3r_jax.backbones.base import get_backbone
from lite3r_jax.data.known_cameras import KnownCameras
from lite3r_jax.data.photos import PhotoSet
from lite3r_jax.deploy.checkpoint import load_deployed
from lite3r_jax.deploy.manifest import find_deployment
from lite3r_jax.errors import InputError
from lite3r_jax.experiment import Experiment, require, to_config
from lite3r_jax.infer import report as reports
from lite3r_jax.infer.cameras import CameraOptions
from lite3r_jax.infer.memory import check_weights
from lite3r_jax.infer.progress import Progress
from lite3r_jax.infer.reconstruct import Reconstructor, find_photos
from lite3r_jax.scene import PointSource
from lite3r_jax.weights.load import load, resolve
from lite3r_jax.weights.manifest import read_manifest


def run(experiment: Experiment) -> int:
    """Reconstruct and export every scene of the input.

    What can be known to fail is found out before anything is computed. A scene that fails later
    does not keep the others from being done; its error goes to stderr.

    Args:
        experiment: `input`, `weights` and `output` have to be set.

    Returns:
        Exit code: 0, or 1 if some scenes of several failed.

    Raises:
        InputError: nothing was done: the input, the weights or the settings are wrong, or results
            exist already.
    """
    require(experiment, "input", "weights", "output")
    formats = export.parse_formats(experiment.formats)
    started = Progress()
    scenes = find(experiment, started)
    known = known_cameras(experiment, scenes)
    output = Path(experiment.output)
    folders = [output if len(scenes) == 1 else output / scene.name for scene in scenes]
    if not experiment.overwrite:
        _refuse_existing(folders, formats)
    model, description = load_model(experiment, experiment.export.points.source, started)
    reconstructor = Reconstructor(
        model,
        images=experiment.images,
        cameras=experiment.cameras,
        known=known,
        compute=experiment.compute,
    )
    settings = to_config(experiment).to_dict()
    failed = 0
    for number, (photos, folder) in enumerate(zip(scenes, folders, strict=True), 1):
        print(f"[{number}/{len(scenes)}] {photos.name}: {len(photos.photos)} views", flush=True)
        progress = Progress()
        progress.seconds |= started.seconds
        try:
            scene = reconstructor(photos, progress)
            assert reconstructor.plan is not None
            facts = reports.describe_run(
                scene,
                model=description,
                settings=settings,
                ignored=photos.ignored,
                cameras=reconstructor.alignment,
            )
            with progress.stage("export", len(formats), "format") as tick:
                outputs = export.write(
                    scene,
                    folder,
                    formats,
                    _titled(experiment.export, photos.name),
                    overwrite=experiment.overwrite,
                    progress=tick,
                    report={key: facts[key] for key in ("model", "versions", "device")},
                )
            report = facts | reports.measure_run(
                reconstructor.plan, progress.seconds, outputs, folder
            )
            path = folder / reports.FILE_NAME
            reports.write_report(report, path, overwrite=experiment.overwrite)
            print(reports.summary(report), flush=True)
        except InputError as error:
            if len(scenes) == 1:
                raise
            print(f"error: {photos.name}: {error}", file=sys.stderr, flush=True)
            failed += 1
    if len(scenes) > 1:
        print(f"{len(scenes) - failed} of {len(scenes)} scenes done")
    return 1 if failed else 0


def find(experiment: Experiment, progress: Progress) -> list[PhotoSet]:
    """The scenes of the input.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    with progress.stage("find photos") as tick:
        return find_photos(
            experiment.input, images=experiment.images, video=experiment.video, progress=tick
        )


def known_cameras(experiment: Experiment, scenes: Sequence[PhotoSet]) -> KnownCameras | None:
    """Known cameras of the scene, where there are any.

    Raises:
        InputError: they cannot be read, do not fit the photos, or there are several scenes; the
            backbone does not have what is asked of cameras.
    """
    if experiment.cameras != CameraOptions():
        model = get_backbone(experiment.backbone).build
        experiment.cameras.arguments(model, bool(experiment.cameras.known))
    return experiment.cameras.read(scenes)


def load_model(
    experiment: Experiment, points: PointSource, progress: Progress
) -> tuple[Any, Mapping[str, Any]]:
    """The model with the heads that are needed, and its description for the report.

    Args:
        experiment: `weights`, `backbone`, `cameras` and `compute` count.
        points: where the points will come from.
        progress: takes the time.

    Raises:
        InputError: the weights cannot be had, are of another backbone, or do not fit into memory.
    """
    with progress.stage("load weights"):
        directory = Path(experiment.weights)
        deployment = find_deployment(directory)
        if deployment is None:
            directory, _ = resolve(experiment.weights)
        manifest = deployment or read_manifest(directory)
        if manifest.backbone != experiment.backbone:
            raise InputError(
                f"{experiment.weights}: weights of {manifest.backbone}, but the config is for"
                f" {experiment.backbone}; use configs/{manifest.backbone}*.py"
            )
        heads = ["camera", "depth"]
        if points == "head":
            heads.append("point")
        heads += experiment.cameras.heads
        dtype = experiment.compute.jax_dtype
        check_weights(manifest, heads, dtype, experiment.compute.limit)
        if deployment is None:
            model = load(directory, heads=heads, dtype=dtype, param_dtype=dtype)
        else:
            model = load_deployed(directory, heads=heads, dtype=dtype)
    return model, reports.describe_model(model, manifest)


def _titled(options: export.ExportOptions, name: str) -> export.ExportOptions:
    """With the name of the scene as the title of the page, unless another was asked for."""
    if options.page.title != export.PageOptions.title:
        return options
    return replace(options, page=replace(options.page, title=name))


def _refuse_existing(folders: list[Path], formats: tuple[str, ...]) -> None:
    planned = [path for folder in folders for path in export.planned(folder, formats)]
    planned += [folder / reports.FILE_NAME for folder in folders]
    found = [str(path) for path in planned if path.exists()]
    if found:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise InputError(
            f"{', '.join(found[:3])}{more}: exist already; choose another config.output or add"
            " --config.overwrite"
        )
