"""What a run was: times, memory, sizes, dtypes, kernels and versions, for the record."""

import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from lite3r_jax.backbones.base import count_parameters
from lite3r_jax.deploy.manifest import Deployment
from lite3r_jax.files import staged
from lite3r_jax.infer.memory import GIB, MemoryPlan, peak_device, peak_process
from lite3r_jax.layers.fp8 import describe_products
from lite3r_jax.scene import Scene
from lite3r_jax.weights.manifest import Manifest

FILE_NAME = "report.json"


def environment() -> dict[str, Any]:
    """Versions and device."""
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


def describe_model(model: Any, manifest: Manifest | Deployment) -> dict[str, Any]:
    """Which weights, in which precision, with which attention."""
    state = jax.tree.leaves(nnx.state(model))
    held = sorted({str(x.dtype) for x in state})
    stored = sum(x.size for x in state if x.dtype.itemsize == 1)
    if isinstance(manifest, Deployment):
        precision, source = manifest.kind, dict(manifest.teacher)
    else:
        precision = ", ".join(held)
        source = {name: record.sha256 for name, record in manifest.source_files.items()}
    return {
        "backbone": manifest.backbone,
        "heads": list(model.heads),
        "parameters": count_parameters(model) + stored,
        "precision": precision,
        "dtype": {"compute": str(np.dtype(model.dtype)), "weights": ", ".join(held)},
        "attention": model.attention(),
        "float8_products": describe_products(model),
        "weights": {
            "source": source,
            "repository": manifest.origin.repo,
            "licence": manifest.origin.license,
        },
    }


def describe_run(
    scene: Scene,
    *,
    model: Mapping[str, Any],
    settings: Mapping[str, Any],
    ignored: Sequence[str],
    cameras: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What is the same for every run on the same photos with the same settings and machine.

    Args:
        scene: the result.
        model: from `describe_model`.
        settings: of the run.
        ignored: files of the input folder that are no photos.
        cameras: with known cameras, `Reconstructor.alignment`.
    """
    height, width = scene.size
    return {
        "scene": {
            "views": scene.views,
            "network_size": {"height": height, "width": width},
            "photos": [
                {"name": name, "width": int(w), "height": int(h)}
                for name, (w, h) in zip(scene.names, scene.source_sizes, strict=True)
            ],
            "ignored_files": list(ignored),
            "known_cameras": None if cameras is None else dict(cameras),
        },
        "model": dict(model),
        "settings": dict(settings),
        **environment(),
    }


def measure_run(
    plan: MemoryPlan, seconds: Mapping[str, float], outputs: Mapping[str, Path], folder: Path
) -> dict[str, Any]:
    """What differs from run to run.

    Args:
        plan: what was predicted before the run.
        seconds: stage -> wall time.
        outputs: format -> what was written, below `folder`.
        folder: of the results.
    """
    device = peak_device()
    return {
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "memory_GiB": {
            "predicted_peak": _gib(plan.peak),
            "measured_peak": _gib(peak_process() if device is None else device),
            "measured": "process" if device is None else "device",
            "frame_chunk": plan.frame_chunk,
            "process_peak": _gib(peak_process()),
        },
        "outputs": {
            name: {"path": path.relative_to(folder).as_posix(), "bytes": _size(path)}
            for name, path in outputs.items()
        },
    }


def write_report(report: Mapping[str, Any], path: Path, *, overwrite: bool = False) -> None:
    """Write the report as JSON.

    Raises:
        InputError: it exists and may not be replaced, or cannot be written.
    """
    with staged(path, overwrite=overwrite) as partial:
        partial.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")


def summary(report: Mapping[str, Any]) -> str:
    """The short table for the screen."""
    scene, model, memory = report["scene"], report["model"], report["memory_GiB"]
    size = scene["network_size"]
    rows = [
        ("views", f"{scene['views']} of {size['width']}x{size['height']}"),
        (
            "model",
            f"{model['backbone']}, {model['parameters'] / 1e6:,.1f} M parameters,"
            f" {model['precision']}, computed in {model['dtype']['compute']}",
        ),
        ("attention", ", ".join(f"{role} {text}" for role, text in model["attention"].items())),
        *[("float8 products", text) for text in [model.get("float8_products")] if text],
        ("device", f"{report['device']['kind']}; {report['device']['machine']}"),
        (
            "memory",
            f"{memory['measured_peak']:.2f} GiB peak of the {memory['measured']},"
            f" {memory['predicted_peak']:.2f} GiB planned",
        ),
    ]
    rows += [(name, f"{value:8.2f} s") for name, value in report["seconds"].items()]
    rows += [
        (name, f"{out['path']}  {out['bytes'] / 1e6:,.1f} MB")
        for name, out in report["outputs"].items()
    ]
    if cameras := scene["known_cameras"]:
        text = (
            f"{cameras['known']}; predicted ones are {cameras['median_rotation_degrees']:.2f}"
            f" degrees and {cameras['median_distance']:.3g} of their unit away (medians)"
        )
        rows.append(("known cameras", text))
    if scene["ignored_files"]:
        names = scene["ignored_files"]
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        rows.append(("no photos", ", ".join(names[:5]) + more))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name.ljust(width)}  {text}" for name, text in rows)


def _gib(size: int) -> float:
    return round(size / GIB, 3)


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(file.stat().st_size for file in files)
