"""`--mode=reconstruct`: reconstructs the scenes of an input, each into a folder of results."""

import copy
import sys
import webbrowser
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lite3r_jax import exports
from lite3r_jax.backbones.base import POINTS, get_backbone
from lite3r_jax.data.known_cameras import KnownCameras
from lite3r_jax.data.photos import PhotoSet, UnopenedScene, list_scenes
from lite3r_jax.data.video import VideoOptions
from lite3r_jax.errors import InputError, printable
from lite3r_jax.experiment import Experiment, require, to_config
from lite3r_jax.exports.masks import check_masks
from lite3r_jax.folder_lock import locked
from lite3r_jax.infer import report as reports
from lite3r_jax.infer.cameras import CameraOptions
from lite3r_jax.infer.memory import check_weights
from lite3r_jax.infer.point_tracker import TRACK, check_track_head
from lite3r_jax.infer.reconstruct import Reconstructor
from lite3r_jax.long_video.chunks import plan_chunks
from lite3r_jax.long_video.frames import Frames, open_frames
from lite3r_jax.mesh import make_view_mesh
from lite3r_jax.models import CheckedModel, check_model
from lite3r_jax.processes import is_first, joined
from lite3r_jax.progress import Progress
from lite3r_jax.refine import RefineOptions, check_extra
from lite3r_jax.runs import together
from lite3r_jax.runs.long_video import check_chunked, run_chunks
from lite3r_jax.runs.results import ResultFolder, made_of, refuse_other
from lite3r_jax.scene import PointSource, check_names
from lite3r_jax.weights import hub
from lite3r_jax.weights.load import BUNDLED

DEFAULT_OUTPUT = "lite3r_output"
"""Folder of results unless the settings name one: in the working directory, not among photos."""


@dataclass(frozen=True)
class Reconstructions:
    """The outcome of reconstructing an input, scene by scene.

    Attributes:
        folders: scene -> folder of its results.
        failures: scene -> why it has none.
    """

    folders: Mapping[str, Path]
    failures: Mapping[str, str]


def run(experiment: Experiment) -> int:
    """Runs `--mode=reconstruct`; exit code 0, or 1 if some scenes of several failed."""
    return 1 if reconstruct_files(experiment).failures else 0


def reconstruct_files(experiment: Experiment) -> Reconstructions:
    """Reconstructs and exports every scene of the input.

    What can be known to fail is found out before anything is computed. Of several scenes one that
    fails does not keep the others from being done; its error goes to stderr. Scenes that were done
    before, with the same settings, weights and photos, are not done again, unless `overwrite` is
    set; what an older run wrote and this one does not is then removed.

    Of several processes the first does this, and the others compute with it.

    Args:
        experiment: with `input` and `weights`. Without `output` scenes go into `lite3r_output`.

    Raises:
        InputError: nothing was done: the input, the weights or the settings are wrong, other
            results exist already, or the output cannot be written or is being written by another
            process.
    """
    require(experiment, "input", "weights")
    formats = exports.parse_formats(experiment.formats)
    if experiment.video.chunk:
        check_chunked(experiment)
    together.check_together(experiment)
    with joined(experiment.processes), ExitStack() as locks:
        if experiment.processes.coordinator and not is_first():
            return together.follow(experiment)
        if experiment.output:
            locks.enter_context(locked(Path(experiment.output), "reconstruct"))
        return _reconstruct_files(experiment, formats, locks)


def _reconstruct_files(
    experiment: Experiment, formats: tuple[str, ...], locks: ExitStack
) -> Reconstructions:
    started = Progress(not experiment.quiet)
    scenes = find(experiment)
    several = len(scenes) > 1
    # one scene is looked at before anything else; many videos do not fit into memory at once
    opened: dict[str, PhotoSet] = {}
    frames: dict[str, Frames] = {}
    if not several:
        first = open_any(experiment, scenes[0], started)
        if isinstance(first, PhotoSet):
            opened[scenes[0].name] = first
        else:
            frames[scenes[0].name] = first
    known = known_cameras(experiment, scenes, opened)
    _check_masks(experiment, scenes, opened)
    if experiment.refine.on:
        check_extra()
    checked = check(experiment, experiment.export.points.source, started)
    together.same_everywhere(experiment, checked.identity(), scenes, known)
    folders = result_folders(experiment, scenes, formats, checked)
    mine = Path(experiment.output) if experiment.output else folders[scenes[0].name].path
    if not experiment.output:  # others may write beside it
        locks.enter_context(locked(mine, "reconstruct"))
    states = {name: folder.state() for name, folder in folders.items()}
    before: list[str] = []
    if not experiment.overwrite:
        refuse_other([folders[name] for name, state in states.items() if state == "other"])
        before = [name for name, state in states.items() if state == "done"]
    done = {name: folders[name].path for name in before}
    failures: dict[str, str] = {}
    left = len(before) < len(scenes)
    run_one: SceneRun | None = None
    if left:
        built = build(experiment, checked, experiment.export.points.source, started)
        run_one = SceneRun(experiment, built, known, formats, several)
        del built  # whose weights the devices have now
    for number, unopened in enumerate(scenes, 1):
        name, where = unopened.name, f"[{number}/{len(scenes)}] {printable(unopened.name)}"
        if run_one is None or name in before:
            if not experiment.quiet:
                print(f"{where}: done before; overwrite does it again", flush=True)
            continue
        progress = Progress(not experiment.quiet)
        try:
            photos = opened.get(name) or frames.get(name)
            photos = photos or open_any(experiment, unopened, progress)
            if not experiment.quiet:
                print(f"{where}: {described(photos, experiment.video)}", flush=True)
            progress.seconds = started.seconds | progress.seconds
            path = folders[name].path
            together.next_scene(number - 1)
            with nullcontext() if path == mine else locked(path, "reconstruct"):
                if isinstance(photos, PhotoSet):
                    run_one(photos, folders[name], progress)
                else:
                    run_chunks(run_one, photos, folders[name], progress)
            done[name] = path
        except InputError as error:
            if not several:
                raise
            print(f"error: {printable(name)}: {printable(error)}", file=sys.stderr, flush=True)
            failures[name] = str(error)
    together.next_scene(together.NO_MORE)
    for line in _closing(experiment, done, failures, formats, len(before)):
        print(printable(line), flush=True)
    if done and experiment.open:
        _open(exports.to_look_at(next(iter(done.values())), formats))
    return Reconstructions(done, failures)


class SceneRun:
    """Reconstructs scenes with one model: photos to a folder of results."""

    def __init__(
        self,
        experiment: Experiment,
        built: tuple[Any, Mapping[str, Any]],
        known: KnownCameras | None,
        formats: tuple[str, ...],
        several: bool = False,
    ):
        """Prepares the reconstruction of scenes; see `reconstruct_files`.

        Args:
            experiment: the settings.
            built: model and description, from `build`.
            known: cameras of the photos, where there are any.
            formats: keys of `exports.FORMATS`.
            several: whether this is one of several scenes, whose masks are in folders of their own.
        """
        model, self.description = built
        self.used = experiment.images.of(model)
        self.reconstructor = Reconstructor(
            model,
            images=self.used,
            cameras=experiment.cameras.with_points(model, experiment.export.points.source),
            known=known,
            compute=experiment.compute,
            refine=refinement_of(experiment),
            descriptors=bool(experiment.video.chunk and experiment.video.loops),
        )
        self.several = several
        self._set(experiment, formats)

    def like(self, experiment: Experiment, formats: tuple[str, ...]) -> "SceneRun":
        """Returns a copy with the same model and programs, and other input, output and export."""
        other = copy.copy(self)
        other._set(experiment, formats)
        return other

    def _set(self, experiment: Experiment, formats: tuple[str, ...]) -> None:
        self.settings = to_config(replace(experiment, images=self.used)).to_dict()
        self.experiment, self.formats = experiment, formats

    def __call__(self, photos: PhotoSet, folder: ResultFolder, progress: Progress) -> None:
        """Reconstructs a scene and writes its results.

        Args:
            photos: of the scene.
            folder: takes the results.
            progress: takes the time of every stage.

        Raises:
            InputError: as `Reconstructor` and `exports.write`.
        """
        state = folder.state()  # again: since the first look others may have written there
        if not self.experiment.overwrite and state in ("done", "other"):
            refuse_other([folder])
        options = self._export_options(photos)
        # what is overwritten stays until there is something in its place
        keeps = self.experiment.refine.on and state in ("new", "unfinished")
        older = folder.begin(refining=True) if keeps else frozenset[str]()
        try:
            work = folder.refining if keeps else None
            scene = self.reconstructor(photos, progress, options.points, work)
        except InputError:
            if keeps:
                folder.give_up()
            raise
        facts = reports.describe_run(
            scene,
            model=self.description,
            settings=self.settings,
            ignored=photos.ignored,
            cameras=self.reconstructor.alignment,
            refinement=self.reconstructor.refinement,
        )
        older = older if keeps else folder.begin()
        try:
            with progress.stage("export", len(self.formats), "format") as tick:
                outputs = exports.write(
                    scene,
                    folder.path,
                    self.formats,
                    options,
                    overwrite=self.experiment.overwrite or state == "unfinished",
                    progress=tick,
                    report={key: facts[key] for key in ("model", "versions", "device")},
                )
        except InputError:
            folder.give_up()
            raise
        report = facts | reports.measure_run(
            self.reconstructor.plan, progress.seconds, outputs, folder.path
        )
        folder.finish(report, older)
        if not self.experiment.quiet:
            print(reports.summary(report), flush=True)

    def _export_options(self, photos: PhotoSet) -> exports.ExportOptions:
        """Returns export options with a scene's name as title and, of several scenes, its masks."""
        options = titled(self.experiment.export, photos.name)
        masks = options.points.mask_folder
        if not (self.several and masks):
            return options
        masks = str(Path(masks) / photos.name)
        check_masks(masks, photos.photos)
        return replace(options, points=replace(options.points, mask_folder=masks))


def result_folders(
    experiment: Experiment,
    scenes: Sequence[UnopenedScene],
    formats: tuple[str, ...],
    checked: CheckedModel,
) -> dict[str, ResultFolder]:
    """Returns scene -> its folder: `output` itself for one scene, else a folder in it."""
    output = Path(experiment.output or DEFAULT_OUTPUT)
    alone = bool(experiment.output) and len(scenes) == 1
    model = checked.facts()
    return {
        scene.name: ResultFolder(
            output if alone else output / scene.name,
            formats,
            made_of(experiment, model, scene.files),
        )
        for scene in scenes
    }


def _closing(
    experiment: Experiment,
    done: Mapping[str, Path],
    failures: Mapping[str, str],
    formats: tuple[str, ...],
    before: int,
) -> list[str]:
    """Returns the last lines: what to open, and of several scenes how many are done or failed."""
    if len(done) + len(failures) == 1:
        return [f"open {exports.to_look_at(folder, formats)}" for folder in done.values()]
    lines = []
    if done:
        first = exports.to_look_at(next(iter(done.values())), formats)
        output = experiment.output or DEFAULT_OUTPUT
        lines = [f"open {first}, or another scene of {output}"]
    count = f"{len(done)} of {len(done) + len(failures)} scenes done"
    count += f", {before} of them before" if before else ""
    return [*lines, f"{count}; failed: {', '.join(failures)}" if failures else count]


def about_bundled(name: str) -> str:
    """Returns a text on a model of the package, and on the weights to take for photos instead."""
    repo = "facebook/VGGT-1B"
    model = hub.known()[repo].model
    return (
        f"{name} comes with the package: a small model of generated scenes, to try things with.\n"
        f"For real photos add --weights {repo} ({model.download}, downloaded once,"
        f" {model.license})."
    )


def _open(path: Path) -> None:
    """Opens a file in the user's browser, or says that there is none."""
    if not webbrowser.open(path.absolute().as_uri()):
        print(f"--open: no browser was found on this machine; open {path}", file=sys.stderr)


def find(experiment: Experiment) -> list[UnopenedScene]:
    """Returns the scenes of the input, not opened yet.

    Raises:
        InputError: there is none.
    """
    images = experiment.images
    return list_scenes(
        experiment.input,
        video=experiment.video,
        max_pixels=images.max_pixels,
        min_views=images.min_views,
    )


def open_scene(experiment: Experiment, unopened: UnopenedScene, progress: Progress) -> PhotoSet:
    """Opens the photos of a scene.

    Raises:
        InputError: the scene has too few photos, a video cannot be read, or results cannot have
            such names.
    """
    with progress.stage("find photos") as tick:
        photos = unopened.open(tick)
    check_names(tuple(photo.name for photo in photos.photos))
    return photos


def open_any(
    experiment: Experiment, unopened: UnopenedScene, progress: Progress
) -> "PhotoSet | Frames":
    """Opens the photos of a scene; for a video longer than a chunk, frames to be read later.

    Raises:
        InputError: as `open_scene`; `video.chunk` is set for photos whose names tell no order.
    """
    video = experiment.video
    if not video.chunk:
        return open_scene(experiment, unopened, progress)
    with progress.stage("find frames") as tick:
        frames = open_frames(unopened, video, experiment.images.max_pixels, tick)
    if len(frames.names) <= video.chunk:
        return open_scene(experiment, unopened, progress)
    check_names(frames.names)
    return frames


def described(photos: "PhotoSet | Frames", video: VideoOptions) -> str:
    """Returns a text on how much a scene has, and on its chunks where chunks were asked for."""
    if isinstance(photos, PhotoSet):
        one = f", one pass, since a chunk has {video.chunk}" if video.chunk else ""
        return f"{len(photos.photos)} views{one}"
    count = len(plan_chunks(len(photos.names), video.chunk, video.shared))
    return (
        f"{len(photos.names)} frames in {count} chunks of {video.chunk}, of which neighbors share"
        f" {video.shared}"
    )


def known_cameras(
    experiment: Experiment, scenes: Sequence[UnopenedScene], opened: Mapping[str, PhotoSet]
) -> KnownCameras | None:
    """Reads the known cameras of the scene; None where there are none.

    Args:
        experiment: the settings.
        scenes: of the input.
        opened: name -> photos, if it is one scene.

    Raises:
        InputError: the cameras cannot be read, do not fit the photos, or there are several scenes;
            the backbone does not have what is asked of cameras.
    """
    if experiment.cameras != CameraOptions():
        model = get_backbone(experiment.backbone).model
        experiment.cameras.arguments(model, bool(experiment.cameras.known))
    if experiment.cameras.known and len(scenes) > 1:
        raise InputError(
            f"cameras.known: {experiment.cameras.known} is of one scene, the input has"
            f" {len(scenes)}; reconstruct them one by one"
        )
    return experiment.cameras.read(list(opened.values()))


def refinement_of(experiment: Experiment) -> RefineOptions | None:
    """Returns how cameras are refined; None where they are not."""
    return experiment.refine if experiment.refine.on else None


def _check_masks(
    experiment: Experiment, scenes: Sequence[UnopenedScene], opened: Mapping[str, PhotoSet]
) -> None:
    """Raises if masks are missing or do not fit; of several scenes only if folders are missing.

    Raises:
        InputError: naming the folder or the mask.
    """
    masks = experiment.export.points.mask_folder
    if not masks:
        return
    for photos in opened.values():
        check_masks(masks, photos.photos)
    if not opened and (missing := [s.name for s in scenes if not (Path(masks) / s.name).is_dir()]):
        raise InputError(
            f"{masks}: has no folder {missing[0]}; of several scenes points.mask_folder has a"
            " folder with masks for each"
        )


def check(experiment: Experiment, points: PointSource, progress: Progress) -> CheckedModel:
    """Checks the model of an experiment, before its weights are read.

    Args:
        experiment: `weights`, `student`, `attention`, `precision`, `backbone`, `cameras` and
            `compute` count.
        points: where the points will come from.
        progress: takes the time.

    Raises:
        InputError: the weights cannot be had, are of another backbone, do not fit into memory, or
            are without what the attention has to have learned.
    """
    make_view_mesh(experiment.compute.mesh)  # whether there is such a one
    with progress.stage("load weights"):
        checked = check_model(experiment.model_spec(), experiment.backbone)
        checked.refuse_untrained()
        heads = _heads(experiment, checked, points)
        check_weights(checked.manifest, heads, checked.held_dtype, experiment.compute.limit)
    return checked


def build(
    experiment: Experiment, checked: CheckedModel, points: PointSource, progress: Progress
) -> tuple[Any, Mapping[str, Any]]:
    """Builds the model with the heads that are needed, and describes it for the report.

    Args:
        experiment: as for `check`, and `quiet`.
        checked: from `check`.
        points: where the points will come from.
        progress: takes the time.

    Raises:
        InputError: a file of the weights is damaged.
    """
    if experiment.weights in BUNDLED and not experiment.quiet:
        print(about_bundled(experiment.weights), flush=True)
    with progress.stage("load weights"):
        model = checked.build(_heads(experiment, checked, points))
    return model, checked.describe(model)


def _heads(experiment: Experiment, checked: CheckedModel, points: PointSource) -> list[str]:
    kind = get_backbone(checked.manifest.backbone).model
    heads = ["camera", "depth"]
    if points == "head" and POINTS not in kind.choices:
        heads.append("point")
    if experiment.refine.on and experiment.refine.matches == TRACK:
        check_track_head(experiment.refine, checked.manifest.heads)
        heads.append(TRACK)
    return heads + list(experiment.cameras.heads(kind))


def titled(options: exports.ExportOptions, name: str) -> exports.ExportOptions:
    """Returns options whose page has the scene's name as title, unless another was asked for."""
    if options.page.title != exports.PageOptions.title:
        return options
    return replace(options, page=replace(options.page, title=name))
