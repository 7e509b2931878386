"""Registers the data sources of the package by name."""

import json
import re
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any, cast, get_args

from lite3r_jax.data.blendedmvs import BlendedMVS
from lite3r_jax.data.captures import Capture
from lite3r_jax.data.dtu64 import DTU64, reference_first
from lite3r_jax.data.folders import subfolders
from lite3r_jax.data.motorcycle import Motorcycle
from lite3r_jax.data.photo_scenes import PhotoScenes, find_photos
from lite3r_jax.data.registry import (
    SOURCES,
    DataSource,
    SourceOptions,
    SourceSpec,
    TrainingSource,
    evenly_spaced,
    open_training,
    parse_source,
    parse_sources,
    register_source,
    spaced,
    split_sources,
)
from lite3r_jax.data.sampling import choose_frames
from lite3r_jax.data.synthetic.source import SyntheticScenes
from lite3r_jax.data.synthetic.splits import Split as SyntheticSplit
from lite3r_jax.errors import InputError, unknown_name

__all__ = [
    "SOURCES",
    "DataSource",
    "SourceOptions",
    "SourceSpec",
    "TrainingSource",
    "open_training",
    "parse_source",
    "parse_sources",
    "register_source",
    "split_sources",
]

Samples = list[tuple[str, tuple[int, ...]]]

SYNTHETIC_FRAMES = 8
"""Number of frames of generated scenes in evaluations; another number gives other scenes."""
SYNTHETIC_VALIDATION = 1000
"""Number of generated scenes for evaluations during a training, which are not trained on."""
BLENDEDMVS_SAMPLES = 4
"""Number of samples of each scene of BlendedMVS in evaluations."""

_ALL = get_args(SyntheticSplit)
TRAINING_SPLITS = tuple(name for name in _ALL if name.startswith("train"))
"""Splits of the synthetic dataset that may be trained on; the others have a frozen list."""


def frozen_lists() -> dict[str, Samples]:
    """Returns the frozen samples of the evaluation for each split of the synthetic dataset."""
    folder = resources.files(__name__.rpartition(".")[0])
    return json.loads(folder.joinpath("lists/synthetic.json").read_text("utf-8"))


def _synthetic(
    argument: str, split: str | None, options: SourceOptions, *, frames: str = ""
) -> SyntheticScenes:
    if frames and not (re.fullmatch(r"\d{1,4}", frames) and int(frames) >= 2):
        raise InputError(f"synthetic: frames: expected a number from 2 to 9999, got {frames!r}")
    if frames:
        options = replace(options, frames=int(frames))
    known = tuple(frozen_lists()) if split == "evaluation" else TRAINING_SPLITS if split else _ALL
    name = argument or ("" if split == "evaluation" else "train")
    if name not in known:
        raise unknown_name(f"synthetic: split for {split or 'checking'}", name, known)
    name = cast(SyntheticSplit, name)
    if split == "evaluation":
        count = options.frames if frames else SYNTHETIC_FRAMES
        return SyntheticScenes(name, len(frozen_lists()[name]), count)
    if split is None:
        return SyntheticScenes(name, options.scenes, options.frames)
    settings: dict[str, Any] = {"frames": options.frames, "renderer": "jax"}
    if split == "train":
        return SyntheticScenes(name, options.scenes, cache=options.cache, **settings)
    if name == "train":
        return SyntheticScenes("validation", SYNTHETIC_VALIDATION, **settings)
    # of the split that is held out for it, behind the scenes of its frozen list
    name = cast(SyntheticSplit, name.removeprefix("train_"))
    return SyntheticScenes(name, SYNTHETIC_VALIDATION, first=1000, **settings)


def _synthetic_samples(source: SyntheticScenes, views: int) -> Samples:
    if len(source.frames(source.scenes[0])) != SYNTHETIC_FRAMES:
        return evenly_spaced(source, views)
    samples = []
    for scene, frames in frozen_lists()[source.split]:
        if views > len(frames):
            raise InputError(f"{scene}: has {len(frames)} frames, {views} views are asked for")
        samples.append((scene, tuple(frames[:views])))
    return samples


def _blendedmvs(root: str, split: str | None, options: SourceOptions) -> BlendedMVS:
    del options
    if split is None and (Path(root) / "blended_images").is_dir():  # one scene, to be checked
        whole = Path(root).resolve()
        return BlendedMVS(whole.parent, [whole.name])
    return BlendedMVS(root, {None: None, "train": "train"}.get(split, "validation"))


def _blendedmvs_layout(root: str, split: str | None, options: SourceOptions) -> BlendedMVS:
    del split, options
    return BlendedMVS(root)


def _blendedmvs_samples(source: BlendedMVS, views: int) -> Samples:
    samples = []
    for scene in source.scenes:
        frames, pairs = source.frames(scene), source.pairs(scene)
        for index in range(BLENDEDMVS_SAMPLES):
            chosen = choose_frames(
                frames, views, "pairs", seed=0, index=index, pairs=pairs, name=scene
            )
            samples.append((scene, chosen))
    return samples


def _has_blendedmvs(path: Path) -> bool:
    return any([*path.glob("blended_images"), *path.glob("*/blended_images")])


def _dtu64(root: str, split: str | None, options: SourceOptions) -> DTU64:
    del options
    return DTU64(root, cast(Any, {"train": "training"}.get(split or "", split)))


def _dtu64_samples(source: DTU64, views: int) -> Samples:
    return [
        (scan, spaced(reference_first(source.frames(scan)), views, 1)) for scan in source.scenes
    ]


def _capture(root: str, split: str | None, options: SourceOptions, *, depth: str = "") -> Capture:
    del split, options
    return Capture(root, depth=depth or None)


def _is_capture(path: Path) -> bool:
    names = set(subfolders(path))
    listed = any((path / f"images.{kind}").exists() for kind in ("bin", "txt"))
    return (path / "transforms.json").exists() or "sparse" in names or listed


def _photos(argument: str, split: str | None, options: SourceOptions) -> PhotoScenes:
    del split
    return find_photos(argument, options.views, options.video)


def _motorcycle(argument: str, split: str | None, options: SourceOptions) -> Motorcycle:
    del argument, split, options
    return Motorcycle()


register_source(
    "synthetic",
    _synthetic,
    argument="SPLIT",
    splits=("train", "validation", "evaluation"),
    license="generated by this package (Apache-2.0)",
    evaluation=_synthetic_samples,
    size=(112, 112),
    options=("frames",),
)
register_source(
    "blendedmvs",
    _blendedmvs,
    argument="FOLDER",
    splits=("train", "validation", "evaluation"),
    license="CC BY 4.0, github.com/YoYo000/BlendedMVS",
    evaluation=_blendedmvs_samples,
    detect=_has_blendedmvs,
)
register_source(  # other scenes in the same layout, BlendedMVS+ or generated ones
    "blendedmvs_layout", _blendedmvs_layout, argument="FOLDER", license="that of the scenes"
)
register_source(
    "dtu64",
    _dtu64,
    argument="FOLDER",
    splits=("train", "evaluation"),
    ground_truth="cameras",
    unit="mm",
    license="for research, see roboimagedata.compute.dtu.dk",
    evaluation=_dtu64_samples,
    detect=lambda path: (path / "Cameras").is_dir(),
)
register_source(
    "capture",
    _capture,
    argument="FOLDER",
    ground_truth="cameras, perhaps depth",
    license="your own",
    detect=_is_capture,
    options=("depth",),
)
register_source(
    "photos", _photos, argument="FOLDER", commas=True, ground_truth="none", license="your own"
)
register_source(
    "motorcycle",
    _motorcycle,
    splits=("evaluation",),
    unit="m",
    license="Middlebury stereo 2014, shipped by scikit-image",
)
