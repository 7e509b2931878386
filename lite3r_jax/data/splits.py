"""Frozen lists: which scenes are for what."""

import hashlib
from collections.abc import Iterable

BLENDEDMVS_VALIDATION = (
    "5b7a3890fc8fcf6781e2593a",
    "5c189f2326173c3a09ed7ef3",
    "5b950c71608de421b1e7318f",
    "5a6400933d809f1d8200af15",
    "59d2657f82ca7774b1ec081d",
    "5ba19a8a360c7c30c1c169df",
    "59817e4a1bd4b175e7038d19",
)
"""The official validation scenes of BlendedMVS, in the order of project_lists/validation_list.txt
of github.com/YoYo000/BlendedMVS (e56469e). The official training scenes are the other 106."""

BLENDEDMVS_TRAINING_DIGEST = "b78af64839d03250ef0812f6ceb4a489ac88510d6cfadf85fc8d6cdc86c2f4a6"
"""`scene_digest` of project_lists/BlendedMVS_training.txt of the same place."""

DTU64_EVALUATION = (
    "scan24", "scan37", "scan40", "scan55", "scan63", "scan65", "scan69",
    "scan83", "scan97", "scan105", "scan114", "scan118", "scan122",
)  # fmt: skip
"""The 13 scans of DTU-64 pose evaluation (DTU64_SCENES of github.com/ByteDance-Seed/
Depth-Anything-3, src/depth_anything_3/utils/constants.py)."""

DTU64_VIEWS = 64
DTU64_REFERENCE = 33
"""The view that DTU-64 evaluation puts first (bench/datasets/dtu64.py of the same place)."""


def scene_digest(scenes: Iterable[str]) -> str:
    """SHA-256 of the scenes in alphabetical order, one a line: whether two sets are the same."""
    return hashlib.sha256("".join(f"{scene}\n" for scene in sorted(scenes)).encode()).hexdigest()
