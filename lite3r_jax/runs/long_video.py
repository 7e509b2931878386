"""Reconstructs a long video in chunks, joins them, and writes the results of the whole."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lite3r_jax.errors import InputError, printable
from lite3r_jax.experiment import Experiment
from lite3r_jax.infer import report as reports
from lite3r_jax.long_video.frames import Frames
from lite3r_jax.long_video.outputs import PARTS, Part, check_formats, planned, write_part
from lite3r_jax.long_video.refinement import refine_part
from lite3r_jax.long_video.run import LongVideo, ModelPredictor, reconstruct_chunks
from lite3r_jax.long_video.store import Store
from lite3r_jax.progress import Progress
from lite3r_jax.runs.results import ResultFolder, refuse_other

if TYPE_CHECKING:
    from lite3r_jax.runs.reconstruct import SceneRun


def check_chunked(experiment: Experiment) -> None:
    """Raises if settings do not go with `video.chunk`.

    Raises:
        InputError: naming the setting.
    """
    check_formats(experiment.formats)
    if experiment.cameras.known:
        raise InputError(
            f"cameras.known={experiment.cameras.known}: is not for a video in chunks, whose cameras"
            " are joined from predictions; leave it or video.chunk out"
        )
    if experiment.refine.on and experiment.refine.camera == "SIMPLE_RADIAL":
        raise InputError(
            "refine.camera=SIMPLE_RADIAL: is not for a video in chunks, each of which would have a"
            " lens of its own; choose SIMPLE_PINHOLE or PINHOLE, or leave video.chunk out"
        )
    if experiment.export.points.mask_folder:
        raise InputError(
            "export.points.mask_folder: is not for a video in chunks; use export.points.mask, or"
            " leave out video.chunk"
        )


def refuse_chunks(experiment: Experiment, what: str) -> None:
    """Raises if `video.chunk` is set where a scene is not written but held in memory.

    Args:
        experiment: the settings.
        what: what holds the scene, for the message.

    Raises:
        InputError: `video.chunk` is set.
    """
    if experiment.video.chunk:
        raise InputError(
            f"video.chunk={experiment.video.chunk}: is for lite3r reconstruct, {what} has one pass;"
            " leave it out, or take fewer frames by video.max_frames"
        )


def run_chunks(run: "SceneRun", frames: Frames, folder: ResultFolder, progress: Progress) -> None:
    """Reconstructs a long video and writes its results.

    Args:
        run: the model and the settings.
        frames: of the video.
        folder: takes the results; chunks that it has of the same run are not done again.
        progress: takes the time of every stage.

    Raises:
        InputError: as `reconstruct_chunks` and `write_part`; the folder has results of something
            else.
    """
    from lite3r_jax.runs.reconstruct import titled

    experiment, reconstructor = run.experiment, run.reconstructor
    state = folder.state()
    if not experiment.overwrite and state in ("done", "other"):
        refuse_other([folder])
    if state in ("done", "other"):
        folder.forget_chunks()
    older = folder.begin(chunks=True)
    store = Store(folder.path)
    predictor = ModelPredictor(reconstructor, experiment.export.points)
    try:
        video = reconstruct_chunks(frames, predictor, experiment.video, store, progress)
    except InputError:
        folder.give_up()
        raise
    parts, refinements = video.parts(), []
    if experiment.refine.on:
        with progress.stage("refine the whole", len(parts), "part") as tick:
            for number, part in enumerate(parts):
                parts[number], made = refine_part(part, frames, store, experiment.refine)
                refinements.append(made)
                tick()
        refined = sum(view.refined for view in video.views)
        video.facts["refinement"] = {"chunks": refined, "parts": refinements}
    report = _describe(run, frames, video, parts)
    shown = {key: report[key] for key in ("model", "versions", "device")}
    options = titled(experiment.export, frames.name)
    reads = set(run.formats) - {"npz", "tum"}
    steps = sum(len(part.chunks) * bool(reads) + len(run.formats) for part in parts)
    outputs: dict[str, Path] = {}
    with progress.stage("export", steps, "step") as tick:
        for number, part in enumerate(parts):
            out = folder.path / PARTS / str(number + 1) if number else folder.path
            written, facts = write_part(
                part, frames, store, out, run.formats, options, report=shown, tick=tick
            )
            report["video"]["written"].append(
                {"folder": out.relative_to(folder.path).as_posix(), "frames": len(part.frames)}
                | facts
            )
            if not number:
                outputs = written
    if "npz" in run.formats:
        (outputs["npz"],) = planned(folder.path, ("npz",))
    else:
        store.remove()
    ordered = {name: outputs[name] for name in run.formats}
    report |= reports.measure_run(reconstructor.plan, progress.seconds, ordered, folder.path)
    folder.finish(report, older)
    for line in _warnings(video, parts):
        print(printable(f"warning: {frames.name}: {line}"), file=sys.stderr, flush=True)
    if not experiment.quiet:
        print(reports.summary(report), flush=True)


def _describe(
    run: "SceneRun", frames: Frames, video: LongVideo, parts: list[Part]
) -> dict[str, Any]:
    """Returns the report of a run without measurements; it has the first and the last frame."""
    ends = parts[0].ends(frames)
    report = reports.describe_run(
        ends, model=run.description, settings=run.settings, ignored=frames.ignored
    )
    report["scene"]["views"] = len(frames.names)
    return report | {"video": {**video.facts, "summary": summary(video, parts), "written": []}}


def summary(video: LongVideo, parts: list[Part]) -> list[str]:
    """Returns lines for the screen on the chunks of a video: joints, loops, drift, refinement."""
    facts = video.facts
    count, good = len(video.chunks), facts["joints"]["count"]
    lines = [
        f"{facts['frames']} frames in {count} chunks of {facts['chunk']}, {facts['overlap']}"
        f" shared; {good} of {count - 1} joints fit"
    ]
    if facts["joints"]["median_error"] is not None:
        lines[0] += f", {100 * facts['joints']['median_error']:.2g} % of depth apart (median)"
    if facts["loops"]:
        taken = sum(weight > 0 for weight in video.joined.weights)
        lines.append(f"{taken} of {len(facts['loops'])} loops taken")
        if facts["scale_drift"] is not None:
            lines[-1] += f"; scale drifted by a factor of {facts['scale_drift']:.3f} before them"
    if len(parts) > 1:
        lines.append(f"{len(parts)} parts that do not hang together")
    if refinement := facts.get("refinement"):
        lines.append(f"refined {refinement['chunks']} of {count} chunks by themselves")
        first = refinement["parts"][0]
        if first["refined"]:
            error = first["error_pixels"]
            lines.append(
                f"refined together: {first['tracks']:,} points, median error"
                f" {error['before']:.2f} -> {error['after']:.2f} pixels"
            )
        else:
            lines.append(f"not refined together: {first['reason']}")
    return lines


def _warnings(video: LongVideo, parts: list[Part]) -> list[str]:
    """Returns warnings about chunks that did not join."""
    lines = [
        f"chunk {each['chunk']} ({video.facts['chunks'][each['chunk']]['first_frame']} and after)"
        f" does not fit the one before: {each['fault']}"
        for each in video.facts["failed_joints"]
    ]
    if len(parts) > 1:
        sizes = ", ".join(str(len(part.frames)) for part in parts)
        lines.append(
            f"{len(parts)} parts do not hang together and are kept apart, with {sizes} frames; the"
            f" first is the result, the others are in {PARTS}/; film more slowly, or raise"
            " video.overlap or video.fps"
        )
    return lines
