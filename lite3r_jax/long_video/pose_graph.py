"""Pose graph optimization over similarities: chunks are nodes, measured joints and loops are edges.

Node i has S_i, from the world of chunk i into that of the video. An edge (i, j) has M, from the
world of chunk j into that of chunk i, so that S_i M = S_j where all edges agree. The error of an
edge is E = M^-1 S_i^-1 S_j. Its seven residuals are the rotation of E as a vector, the distance by
which E moves the place at which the edge was measured, over the size of chunk j, and the logarithm
of the scale of E; they do not depend on where the worlds of the chunks have their origins.

The graph is solved by Levenberg-Marquardt on sparse normal equations; edges that may be false
(loops) have weights of Geman and McClure that begin convex and become robust (graduated
non-convexity, Yang et al., RA-L 2020), so that all edges count before any is down-weighted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lite3r_jax.geometry import Sim3
from lite3r_jax.long_video.similarity import (
    apply,
    compose,
    cross_matrix,
    exp_rotation,
    inverse,
    log_rotation,
)

DOUBTED = 0.25
"""Robust weight below which a loop is left out of the final solution."""
_OUTLIER = 6.0  # residual in standard deviations at which an edge counts a quarter
_ROUNDS, _STEPS = 40, 30


@dataclass(frozen=True)
class Edge:
    """An edge of the graph: a measured similarity between two nodes.

    Attributes:
        first: index of node i.
        second: index of node j.
        similarity: from the world of j into that of i.
        place: point [3] in the world of j at which the similarity was measured.
        deviation: standard deviation: radians, share of the scale, share of the size of j.
        may_be_false: whether the edge loses weight where it does not fit the others.
    """

    first: int
    second: int
    similarity: Sim3
    place: np.ndarray
    deviation: float
    may_be_false: bool = False


def solve(
    start: Sim3, sizes: np.ndarray, edges: Sequence[Edge], fixed: Sequence[int] = (0,)
) -> tuple[Sim3, np.ndarray]:
    """Optimizes the similarities of all nodes so that they fit the edges best.

    Args:
        start: initial similarities of the N nodes, arrays [N], [N, 3, 3] and [N, 3].
        sizes: [N], length in each node's own unit by which its distances are divided.
        edges: edges of the graph.
        fixed: nodes that do not change; one in each connected part, whose gauge is free otherwise.

    Returns:
        (similarities of the nodes, weight of each edge [E] from 0 to 1).
    """
    if not edges:  # nothing fits anything
        return start, np.ones(0)
    graph = _Graph(sizes, edges, fixed)
    nodes, weights = start, np.ones(len(edges))
    doubtful = np.array([edge.may_be_false for edge in edges], bool)
    nodes = graph.minimized(nodes, weights)
    if not doubtful.any():
        return nodes, weights
    most = (graph.residuals(nodes)[doubtful] ** 2).sum(-1).max() / _OUTLIER**2
    control = max(1.0, 2 * float(most))
    for _ in range(_ROUNDS):
        square = (graph.residuals(nodes) ** 2).sum(-1) / _OUTLIER**2
        weights = np.where(doubtful, (control / (square + control)) ** 2, 1.0)
        nodes = graph.minimized(nodes, weights)
        if control == 1:
            break
        control = max(1.0, control / 1.6)
    kept = weights >= DOUBTED
    nodes = graph.minimized(nodes, np.where(kept, weights, 0.0))
    return nodes, np.where(kept, weights, 0.0)


class _Graph:
    """The edges of a pose graph as arrays, with their residuals and the Jacobian."""

    def __init__(self, sizes: np.ndarray, edges: Sequence[Edge], fixed: Sequence[int]):
        self.first = np.array([edge.first for edge in edges], int)
        self.second = np.array([edge.second for edge in edges], int)
        self.deviation = np.array([edge.deviation for edge in edges], np.float64)
        parts = ([getattr(edge.similarity, name) for edge in edges] for name in Sim3._fields)
        self.back = inverse(Sim3(*(np.array(part, np.float64) for part in parts)))
        self.place = np.array([edge.place for edge in edges], np.float64).reshape(-1, 3)
        self.size = np.asarray(sizes, np.float64)[self.second]
        self.count = len(sizes)
        free = np.ones(self.count, bool)
        free[list(fixed)] = False
        self.columns = np.flatnonzero(np.repeat(free, 7))

    def _apart(self, nodes: Sim3) -> tuple[Sim3, Sim3]:
        """Returns the similarities S_i^-1 S_j and the errors E = M^-1 S_i^-1 S_j of all edges."""
        of = [Sim3(*(part[which] for part in nodes)) for which in (self.first, self.second)]
        between = compose(inverse(of[0]), of[1])
        return between, compose(self.back, between)

    def residuals(self, nodes: Sim3) -> np.ndarray:
        """Returns the residuals [E, 7] of all edges, in standard deviations."""
        _, apart = self._apart(nodes)
        parts = (
            log_rotation(apart.rotation),
            (apply(apart, self.place) - self.place) / self.size[:, None],
            np.log(apart.scale)[:, None],
        )
        return np.concatenate(parts, -1) / self.deviation[:, None]

    def jacobian(self, nodes: Sim3) -> Any:
        """Returns the sparse Jacobian [7 E, 7 N] of the residuals by right changes of the nodes.

        A node S becomes S D, where D has rotation exp(turn), translation shift and scale
        exp(scale); the columns of a node are turn, shift, scale. The Jacobian is exact to the first
        order in the residual's rotation, which vanishes where edges agree.
        """
        from scipy.sparse import csr_array

        between, apart = self._apart(nodes)
        count = len(self.first)
        turn = _inverse_right(log_rotation(apart.rotation))
        to_second = np.zeros((count, 7, 7))
        to_second[:, :3, :3] = turn
        ahead = (apart.scale / self.size)[:, None, None] * apart.rotation
        to_second[:, 3:6, :3] = -ahead @ cross_matrix(self.place)
        to_second[:, 3:6, 3:6] = ahead
        to_second[:, 3:6, 6] = (ahead @ self.place[..., None])[..., 0]
        to_second[:, 6, 6] = 1
        to_first = np.zeros((count, 7, 7))
        to_first[:, :3, :3] = -turn @ between.rotation.swapaxes(-1, -2)
        back = (self.back.scale / self.size)[:, None, None] * self.back.rotation
        there = apply(between, self.place)
        to_first[:, 3:6, :3] = back @ cross_matrix(there)
        to_first[:, 3:6, 3:6] = -back
        to_first[:, 3:6, 6] = -(back @ there[..., None])[..., 0]
        to_first[:, 6, 6] = -1
        values = np.stack([to_first, to_second]) / self.deviation[:, None, None]
        row = np.broadcast_to(np.arange(7 * count).reshape(count, 7, 1), (2, count, 7, 7))
        node = np.stack([self.first, self.second])[..., None, None]
        column = np.broadcast_to(7 * node + np.arange(7), (2, count, 7, 7))
        shape = 7 * count, 7 * self.count
        return csr_array((values.ravel(), (row.ravel(), column.ravel())), shape=shape)

    def minimized(self, nodes: Sim3, weights: np.ndarray) -> Sim3:
        """Minimizes the weighted squared residuals from the given nodes by Levenberg-Marquardt."""
        from scipy.sparse import diags_array
        from scipy.sparse.linalg import spsolve

        root = np.repeat(np.sqrt(weights), 7)
        residuals = root * self.residuals(nodes).ravel()
        cost, damping = float(residuals @ residuals), 1e-6
        for _ in range(_STEPS):
            weighted = diags_array(root) @ self.jacobian(nodes)[:, self.columns]
            normal, slope = (weighted.T @ weighted).tocsc(), weighted.T @ residuals
            while damping < 1e8:
                held = normal + damping * diags_array(normal.diagonal() + 1e-12)
                step = np.zeros(7 * self.count)
                step[self.columns] = np.asarray(spsolve(held.tocsc(), -slope))
                trial = _changed(nodes, step.reshape(-1, 7))
                trial_residuals = root * self.residuals(trial).ravel()
                trial_cost = float(trial_residuals @ trial_residuals)
                if trial_cost < cost:
                    break
                damping *= 10
            else:
                return nodes
            gain = cost - trial_cost
            nodes, residuals, cost = trial, trial_residuals, trial_cost
            damping = max(damping / 10, 1e-12)
            if gain <= 1e-9 * cost + 1e-15:
                break
        return nodes


def _changed(nodes: Sim3, change: np.ndarray) -> Sim3:
    turn, shift, grow = change[:, :3], change[:, 3:6], change[:, 6]
    return Sim3(
        nodes.scale * np.exp(grow),
        nodes.rotation @ exp_rotation(turn),
        apply(nodes, shift),
    )


def _inverse_right(vectors: np.ndarray) -> np.ndarray:
    """Returns inverse right Jacobians [E, 3, 3] of SO(3) at rotation vectors, to second order."""
    k = cross_matrix(vectors)
    return np.eye(3) + k / 2 + k @ k / 12
