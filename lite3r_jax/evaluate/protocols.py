"""Protocols: which frames of which scenes are evaluated, at which size. Lists are frozen.

| name | scenes | frames of N views |
|---|---|---|
| synthetic:SPLIT | 64 of a held-out split of the generated world | `lists/synthetic.json` |
| blendedmvs | the 7 official validation scenes, 4 samples each | by rule from pair.txt |
| dtu64 | the 13 scans | frame 33, then evenly spaced ones of the others; 64: all |
| capture | a folder of photos with a COLMAP model or transforms.json | evenly spaced |
| motorcycle | Middlebury 2014 pair that scikit-image ships | both |

Lists for BlendedMVS, DTU-64 and captures cannot be written down without the data. They are made by
a rule that depends on nothing but pair.txt and the number of frames, and every result names the
frames that it is of.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import cast, get_args

from lite3r_jax.data.blendedmvs import BlendedMVS
from lite3r_jax.data.captures import Capture
from lite3r_jax.data.dtu64 import DTU64, reference_first
from lite3r_jax.data.sampling import choose_frames
from lite3r_jax.data.synthetic.source import SyntheticScenes
from lite3r_jax.data.synthetic.splits import Split
from lite3r_jax.data.views import SceneSource
from lite3r_jax.errors import InputError
from lite3r_jax.evaluate.motorcycle import Motorcycle

SYNTHETIC_FRAMES = 8
"""Of every generated scene. Scenes with another number of frames are other scenes."""
SYNTHETIC_SPLITS = tuple(split for split in get_args(Split) if split != "train")
BLENDEDMVS_SAMPLES = 4
"""Of each scene."""
PROTOCOLS = (*(f"synthetic:{split}" for split in SYNTHETIC_SPLITS),
             "blendedmvs", "dtu64", "capture", "motorcycle")  # fmt: skip


@dataclass(frozen=True)
class Folders:
    """Where datasets are; only those that are evaluated on have to be set.

    Attributes:
        blendedmvs: root of the low-resolution dataset.
        dtu64: root of Cameras and scans.
        capture: folder of photos and their cameras.
        capture_depth: folder of its depth maps; "" for none.
    """

    blendedmvs: str = ""
    dtu64: str = ""
    capture: str = ""
    capture_depth: str = ""


@dataclass(frozen=True)
class Item:
    """One sample of a protocol.

    Attributes:
        scene: id of the scene.
        frames: in order; the first is the reference view.
    """

    scene: str
    frames: tuple[int, ...]


@dataclass(frozen=True)
class Protocol:
    """What is evaluated.

    Attributes:
        name: one of `PROTOCOLS`.
        views: of each sample.
        size: (height, width) of the images.
        items: the samples.
    """

    name: str
    views: int
    size: tuple[int, int]
    items: tuple[Item, ...]


def open_protocol(
    name: str,
    *,
    views: int = 2,
    size: tuple[int, int] | None = None,
    scenes: int = 0,
    folders: Folders = Folders(),
) -> tuple[Protocol, SceneSource]:
    """A protocol and the data that it is about.

    Args:
        name: one of `PROTOCOLS`.
        views: of each sample.
        size: (height, width); None: 112 x 112 of the generated world, 518 x 518 of other data.
        scenes: only so many samples, the first of the list; 0: all.
        folders: where the data is.

    Raises:
        InputError: no such protocol, no data, or not so many views.
    """
    if name not in PROTOCOLS:
        raise InputError(f"protocol: expected one of {', '.join(PROTOCOLS)}, got {name!r}")
    if views < 1 or scenes < 0:
        raise InputError(f"views and scenes: expected at least 1 and 0, got {views} and {scenes}")
    kind, _, split = name.partition(":")
    if kind == "synthetic":
        source, items = _synthetic(split, views)
    elif kind == "blendedmvs":
        source, items = _blendedmvs(_folder(folders, kind), views)
    elif kind == "dtu64":
        source = DTU64(_folder(folders, kind), "evaluation")
        items = [Item(scan, _spaced(_reference(source, scan), views, 1)) for scan in source.scenes]
    elif kind == "capture":
        depth = folders.capture_depth or None
        source = Capture(_folder(folders, kind), depth=depth)
        (scene,) = source.scenes
        items = [Item(scene, _spaced(source.frames(scene), views, 0))]
    else:
        source = Motorcycle()
        items = [Item(source.scenes[0], _spaced((0, 1), views, 0))]
    size = size or ((112, 112) if kind == "synthetic" else (518, 518))
    if not items:
        raise InputError(f"{name}: has no samples")
    return Protocol(name, views, size, tuple(items[: scenes or None])), source


def _folder(folders: Folders, kind: str) -> str:
    folder = getattr(folders, kind)
    if not folder:
        raise InputError(f"evaluate.folders.{kind}: not set; say where the data of {kind} is")
    return folder


def _synthetic(split: str, views: int) -> tuple[SceneSource, list[Item]]:
    text = (
        resources.files(__name__.rpartition(".")[0])
        .joinpath("lists/synthetic.json")
        .read_text("utf-8")
    )
    chosen = json.loads(text)[split]
    source = SyntheticScenes(cast(Split, split), len(chosen), SYNTHETIC_FRAMES)
    return source, [Item(scene, _first(frames, views, scene)) for scene, frames in chosen]


def _blendedmvs(root: str, views: int) -> tuple[SceneSource, list[Item]]:
    source = BlendedMVS(root, "validation")
    items = []
    for scene in source.scenes:
        frames, pairs = source.frames(scene), source.pairs(scene)
        for index in range(BLENDEDMVS_SAMPLES):
            chosen = choose_frames(
                frames, views, "pairs", seed=0, index=index, pairs=pairs, name=scene
            )
            items.append(Item(scene, chosen))
    return source, items


def _reference(source: DTU64, scan: str) -> tuple[int, ...]:
    return reference_first(source.frames(scan))


def _first(frames: Sequence[int], views: int, name: str) -> tuple[int, ...]:
    if views > len(frames):
        raise InputError(f"{name}: has {len(frames)} frames, {views} views are asked for")
    return tuple(frames[:views])


def _spaced(frames: Sequence[int], views: int, lead: int) -> tuple[int, ...]:
    """`views` of the frames: the first `lead` of them, and of the others evenly spaced ones."""
    if views > len(frames):
        raise InputError(f"views: the scene has {len(frames)} frames, {views} views are asked for")
    rest, wanted = frames[lead:], views - lead
    return (*frames[:lead], *(rest[k * len(rest) // wanted] for k in range(wanted)))
