"""Figures that other authors published, with their hardware and what they compare with."""

from dataclasses import dataclass
from typing import Any

from lite3r_jax.backbones.base import backbone_names, get_backbone

MIB = 2**20


@dataclass(frozen=True)
class PublishedFigure:
    """Time and memory of a model as published, which this project has not measured again.

    Attributes:
        model: of which published size.
        method: what was done to it.
        views: of the scene.
        seconds: of a pass.
        memory: peak in bytes; None where it was not published.
        size: of the images, as far as it is known.
        hardware: GPU and precision.
        baseline: what the source compares it with, and that one's seconds.
        source: paper and table.
    """

    model: str
    method: str
    views: int
    seconds: float
    memory: int | None
    size: str
    hardware: str
    baseline: str
    source: str

    def __str__(self) -> str:
        return (
            f"{self.model} {self.method}, {self.views} views of {self.size}, {self.hardware};"
            f" baseline: {self.baseline} ({self.source})"
        )


def _lite3r(model: str, method: str, ms: float, mib: float, before: str) -> PublishedFigure:
    return PublishedFigure(
        model, method, 2, ms / 1000, round(mib * MIB), "518x518", "A100-PCIE-40GB",
        before, "Lite3R, arXiv 2605.11354, Table 1",
    )  # fmt: skip


def _speed3r(method: str, seconds: float) -> PublishedFigure:
    return PublishedFigure(
        "VGGT-1B", method, 300, seconds, None, "a size not stated", "H100",
        "dense, 34.51 s", "Speed3R, arXiv 2603.08055, Tanks and Temples, about 300 views",
    )  # fmt: skip


def _spark3r(model: str, method: str, views: int, seconds: float, dense: float) -> PublishedFigure:
    where = {264: "KITTI", 623: "Bonn"}[views]
    return PublishedFigure(
        model, method, views, seconds, None, "a size not stated", "H20, bfloat16",
        f"dense, {dense:g} s", f"Spark3R, arXiv 2605.06270, {where}",
    )  # fmt: skip


_FLOAT32 = "dense in float32 without TF32, {:g} ms"
PUBLISHED = (
    _lite3r("VGGT-1B", "dense float32", 483.33, 5706, "itself"),
    _lite3r("VGGT-1B", "Lite3R", 274.38, 2455, _FLOAT32.format(483.33)),
    _lite3r("DA3-Large", "dense float32", 187.29, 2713, "itself"),
    _lite3r("DA3-Large", "Lite3R", 95.27, 1368, _FLOAT32.format(187.29)),
    _speed3r("dense", 34.51),
    _speed3r("Block-Sparse VGGT", 10.79),
    _speed3r("FastVGGT", 15.98),
    _speed3r("Speed3R", 6.55),
    _spark3r("VGGT-1B", "dense", 264, 31.5, 31.5),
    _spark3r("VGGT-1B", "Spark3R", 264, 5.3, 31.5),
    _spark3r("VGGT-1B", "dense", 623, 552.4, 552.4),
    _spark3r("VGGT-1B", "Spark3R", 623, 31.1, 552.4),
    _spark3r("DA3-Giant", "dense", 264, 28.8, 28.8),
    _spark3r("DA3-Giant", "Spark3R", 264, 7.2, 28.8),
    _spark3r("DA3-Giant", "dense", 623, 493.4, 493.4),
    _spark3r("DA3-Giant", "Spark3R", 623, 38.3, 493.4),
)


def published_for(config: Any) -> tuple[PublishedFigure, ...]:
    """Returns the published figures of the model that has this config.

    Args:
        config: of the backbone.

    Returns:
        No figure for other sizes: a small model's cost says nothing beside that of a large one.
    """
    known = (model for name in backbone_names() for model in get_backbone(name).published)
    sizes = {model.size for model in known if model.config == config}
    return tuple(figure for figure in PUBLISHED if figure.model in sizes)
