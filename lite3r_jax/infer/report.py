"""The record of a run: times, memory, sizes, dtypes, kernels and versions."""

import importlib.metadata
import json
import os
import platform
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from lite3r_jax.errors import printable
from lite3r_jax.files import atomic_write
from lite3r_jax.html_report.screen import WIDTH
from lite3r_jax.infer.memory import GIB, MemoryPlan, peak_device, peak_process
from lite3r_jax.infer.sharing import describe_sharing
from lite3r_jax.kernels import target
from lite3r_jax.scene import UNITS, Scene

FILE_NAME = "report.json"
SPARSE_FROM_VIEWS = 6
"""Number of views of 518 x 518 pixels from which on sparse attention should be faster on a GPU.

By the roofline of an H200: with fewer views, its launches cost what it saves.
"""


def environment() -> dict[str, Any]:
    """Returns versions of Python and packages, and what the device and machine are."""
    device = jax.devices()[0]
    packages = ("lite3r_jax", "jax", "jaxlib", "flax", "numpy", "pillow")
    return {
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in packages},
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        },
    }


def describe_run(
    scene: Scene,
    *,
    model: Mapping[str, Any],
    settings: Mapping[str, Any],
    ignored: Sequence[str],
    cameras: Mapping[str, Any] | None = None,
    refinement: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Describes what is the same for every run on the same photos, settings and machine.

    Args:
        scene: the result.
        model: from `models.CheckedModel.describe`.
        settings: of the run.
        ignored: files of the input folder that are no photos.
        cameras: with known cameras, `Reconstructor.alignment`.
        refinement: of a run that refines, `Reconstructor.refinement`.
    """
    height, width = scene.size
    note = few_views(scene.views, scene.size, model["attention"])
    return {
        "scene": {
            "views": scene.views,
            "network_size": {"height": height, "width": width},
            "unit": UNITS[scene.unit],
            "photos": [
                {"name": name, "width": int(w), "height": int(h)}
                for name, (w, h) in zip(scene.names, scene.source_sizes, strict=True)
            ],
            "ignored_files": list(ignored),
            "known_cameras": None if cameras is None else dict(cameras),
            "refinement": None if refinement is None else dict(refinement),
        },
        "model": dict(model),
        "settings": dict(settings),
        "few_views": note if target.device().platform == "gpu" else None,
        **environment(),
    }


def few_views(views: int, size: tuple[int, int], attention: Mapping[str, str]) -> str | None:
    """Returns a note if the views are too few for sparse attention to be faster on a GPU, or None.

    Args:
        views: of the scene.
        size: (height, width) of the network's input, in pixels.
        attention: role -> what runs, from `models.CheckedModel.describe`.
    """
    few = views * size[0] * size[1] < SPARSE_FROM_VIEWS * 518 * 518
    if not few or not any(text.startswith("sla ") for text in attention.values()):
        return None
    return (
        f"{views} views are too few for sparse attention to be faster than dense, which is from"
        f" about {SPARSE_FROM_VIEWS} of 518 x 518 pixels on (an estimate for an H200, not measured)"
    )


def measure_run(
    plan: MemoryPlan | None, seconds: Mapping[str, float], outputs: Mapping[str, Path], folder: Path
) -> dict[str, Any]:
    """Returns what differs from run to run: times, memory, devices and files written.

    Args:
        plan: what was predicted before the run; None where no pass was left to run.
        seconds: stage -> wall time.
        outputs: format -> what was written, below `folder`.
        folder: of the results.
    """
    device = peak_device()
    return {
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "memory_GiB": {
            "predicted_peak": None if plan is None else _gib(plan.peak),
            "measured_peak": _gib(peak_process() if device is None else device),
            "measured": "process" if device is None else "device",
            "frame_chunk": None if plan is None else plan.frame_chunk,
            "tokens_rest_on": None if plan is None else "host" if plan.on_host else "device",
            "resting_on_host": 0.0 if plan is None else _gib(plan.resting),
            "process_peak": _gib(peak_process()),
        },
        "devices": None if plan is None or plan.sharing is None else plan.sharing.to_json(),
        "outputs": {
            name: {"path": path.relative_to(folder).as_posix(), "bytes": size_of(path)}
            for name, path in outputs.items()
        },
    }


def write_report(report: Mapping[str, Any], path: Path, *, overwrite: bool = False) -> None:
    """Write the report as JSON in UTF-8; names of files that are not UTF-8 are escaped.

    Raises:
        InputError: it exists and may not be replaced, or cannot be written.
    """
    with atomic_write(path, overwrite=overwrite) as partial:
        text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
        # \udcXX, as Python has bytes of such a name, is an escape of JSON too
        partial.write_bytes(text.encode("utf-8", "backslashreplace"))


def summary(report: Mapping[str, Any]) -> str:
    """Formats a report as the short table for the screen, within its width."""
    scene, model, memory = report["scene"], report["model"], report["memory_GiB"]
    size, planned = scene["network_size"], memory["predicted_peak"]
    rows = [
        ("views", f"{scene['views']} of {size['width']}x{size['height']}"),
        (
            "model",
            f"{model['weights']['name']} ({model['backbone']},"
            f" {model['parameters'] / 1e6:,.1f} M parameters), {model['name']},"
            f" {model['precision']}, computed in {model['dtype']['compute']}",
        ),
        ("plan", model["plan"]),
        ("attention", ", ".join(f"{role} {text}" for role, text in model["attention"].items())),
        *[("note", text) for text in [report.get("few_views")] if text],
        *[("float8 products", text) for text in [model.get("float8_products")] if text],
        *[("kernels", kernel["text"]) for kernel in model.get("kernels", ())],
        ("device", f"{report['device']['kind']}; {report['device']['machine']}"),
        (
            "memory",
            f"{memory['measured_peak']:.2f} GiB peak of the {memory['measured']}"
            + ("" if planned is None else f", {planned:.2f} GiB planned")
            + (
                f", {memory['resting_on_host']:.2f} GiB of tokens rest on the host"
                if memory.get("tokens_rest_on") == "host"
                else ""
            ),
        ),
    ]
    if report.get("devices"):
        rows.append(("devices", describe_sharing(report["devices"])))
    rows += [(name, f"{value:8.2f} s") for name, value in report["seconds"].items()]
    rows += [
        (name, f"{out['path']}  {out['bytes'] / 1e6:,.1f} MB")
        for name, out in report["outputs"].items()
    ]
    rows += [("video", line) for line in report.get("video", {}).get("summary", [])]
    if cameras := scene["known_cameras"]:
        text = (
            f"{cameras['known']}; predicted ones are {cameras['median_rotation_degrees']:.2f}"
            f" degrees and {cameras['median_distance']:.3g} of their unit away (medians)"
        )
        rows.append(("known cameras", text))
    if refinement := scene.get("refinement"):
        rows.append(("refined", _refinement(refinement)))
    if scene["ignored_files"]:
        names = scene["ignored_files"]
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        rows.append(("no photos", ", ".join(names[:5]) + more))
    width = max(len(name) for name, _ in rows)
    lines: list[str] = []
    for name, text in rows:
        first, rest = f"  {name.ljust(width)}  ", " " * (width + 4)
        lines += textwrap.wrap(
            printable(text), WIDTH, initial_indent=first, subsequent_indent=rest,
            break_long_words=False, break_on_hyphens=False,
        ) or [first]  # fmt: skip
    return "\n".join(lines)


def _refinement(report: Mapping[str, Any]) -> str:
    """Describes in a sentence what refinement did to a scene."""
    if not report["refined"]:
        return f"no, the prediction stays: {report['reason']}"
    error, within = report["error_pixels"], report["within_limit"]
    text = (
        f"{report['tracks']:,} points in {report['mean_track_length']:.1f} views each; median error"
        f" {error['before']:.2f} -> {error['after']:.2f} pixels, matches within"
        f" {report['limit_pixels']:.1f} pixels {within['before']:.0%} -> {within['after']:.0%};"
        f" cameras turned by {report['rotation_degrees']['median']:.2f} degrees (median), focal"
        f" length x {report['focal_length']:.3f}"
    )
    if report["not_tied"]:
        text += f"; as predicted, too few matches: {', '.join(report['not_tied'])}"
    return text


def _gib(size: int) -> float:
    return round(size / GIB, 3)


def size_of(path: Path) -> int:
    """Returns the bytes of a file, or of all files in a folder."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(file.stat().st_size for file in files)
