"""Merges the points of many chunks into a cloud of bounded size by a voxel grid."""

import numpy as np

from lite3r_jax.exports.points import PointCloud, thinned

CELLS = 2
"""Largest ratio of held to wanted points; beyond it the edge of the voxels is doubled."""
_LIMIT = (1 << 20) - 1  # cells on each side of the origin, so that three indices fit into int64


class VoxelMap:
    """A voxel grid that keeps the most confident point of each cell and grows cells if too many.

    Attributes:
        edge: edge of a cell, in the unit of the points.
    """

    def __init__(self, edge: float, most: int):
        """Creates an empty grid.

        Args:
            edge: edge of a cell; doubled whenever more than `CELLS` x `most` cells have points.
            most: largest number of points of the result; 0 is no limit.
        """
        self.edge, self._most = edge, most
        self._cloud: PointCloud | None = None

    def __len__(self) -> int:
        """Returns the number of points that the grid holds."""
        return 0 if self._cloud is None else len(self._cloud)

    def add(self, cloud: PointCloud) -> None:
        """Adds points to the grid; where confidences tie, the point that was added first stays."""
        cloud = self._surest(cloud)
        whole = cloud if self._cloud is None else _together(self._cloud, cloud)
        self._cloud = self._surest(whole)
        while self._most and len(self._cloud) > CELLS * self._most:
            self.edge *= 2
            self._cloud = self._surest(self._cloud)

    def cloud(self) -> PointCloud:
        """Returns at most `most` points, ordered by view, then row, then column."""
        assert self._cloud is not None
        held = self._cloud
        order = np.lexsort((held.pixel[:, 0], held.pixel[:, 1], held.view))
        return thinned(_taken(held, order), self._most)

    def _surest(self, cloud: PointCloud) -> PointCloud:
        cells = np.floor(cloud.xyz.astype(np.float64) / self.edge).clip(-_LIMIT, _LIMIT)
        x, y, z = cells.astype(np.int64).T
        key = x + (y << 21) + (z << 42)
        order = np.argsort(-cloud.conf, kind="stable")
        _, first = np.unique(key[order], return_index=True)
        return _taken(cloud, np.sort(order[first]))


def _taken(cloud: PointCloud, which: np.ndarray) -> PointCloud:
    columns = (cloud.xyz, cloud.rgb, cloud.conf, cloud.view, cloud.pixel)
    return PointCloud(*(column[which] for column in columns), unit=cloud.unit)


def _together(a: PointCloud, b: PointCloud) -> PointCloud:
    names = ("xyz", "rgb", "conf", "view", "pixel")
    return PointCloud(
        *(np.concatenate([getattr(a, name), getattr(b, name)]) for name in names), unit=a.unit
    )
