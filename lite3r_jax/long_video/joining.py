"""Alignment of all chunks in one world by a pose graph of joints between neighbors and of loops."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lite3r_jax.geometry import Sim3
from lite3r_jax.long_video.chunks import Chunk
from lite3r_jax.long_video.joint import Joint
from lite3r_jax.long_video.loops import Loop
from lite3r_jax.long_video.pose_graph import Edge, solve
from lite3r_jax.long_video.similarity import apply, compose, identity, inverse

LEAST_DEVIATION = 2e-3
"""Least standard deviation of a measured similarity: radians, share of scale and size.
Errors of the points of one forward pass are correlated, so many points do not make it smaller."""


@dataclass(frozen=True, eq=False)
class Joined:
    """The N chunks of a video aligned in one world, or in one for each connected part.

    Attributes:
        similarities: arrays [N, ...], from each chunk's world into that of its part.
        chained: the similarities before the graph was solved: joints chained along each part.
        parts: indices of the chunks of each connected part, the largest part first. The world of a
            part is that of its first chunk.
        weights: weight of each loop that was given, from 0 (left out) to 1.
        drift: for each loop, the error that the chain of joints alone has accumulated where the
            loop closes: factor of scale, degrees, and distance over the median depth of the chunk;
            None where the loop was not taken or joins two parts.
    """

    similarities: Sim3
    chained: Sim3
    parts: tuple[tuple[int, ...], ...]
    weights: tuple[float, ...]
    drift: tuple[dict[str, float] | None, ...]


def join(
    chunks: Sequence[Chunk],
    joints: Sequence[Joint | None],
    loops: Sequence[Loop],
    centers: Sequence[np.ndarray],
    sizes: Sequence[float],
) -> Joined:
    """Aligns all chunks in one world, or in several where no joint or loop connects them.

    Args:
        chunks: chunks of the video.
        joints: how each chunk fits onto the one before; None for the first.
        loops: loops that were tried; those with a fault do not count.
        centers: camera centers [S, 3] of each chunk in its own world.
        sizes: median depth of each chunk in its own unit.
    """
    count = len(joints)
    edges: list[Edge] = []
    for j, joint in enumerate(joints):
        if joint is not None and joint.similarity is not None and not joint.fault:
            deviation = max(joint.error, LEAST_DEVIATION)
            shared = chunks[j - 1].stop - chunks[j].start
            place = centers[j][:shared].mean(0)
            edges.append(Edge(j - 1, j, joint.similarity, place, deviation))
    chain = _components(count, edges)
    before = _spread(count, edges, chain)
    taken = [i for i, loop in enumerate(loops) if loop.similarity is not None and not loop.fault]
    for i in taken:
        loop = loops[i]
        assert loop.similarity is not None
        ends = loop.candidate.first, loop.candidate.second
        deviation = max(loop.error, LEAST_DEVIATION)
        edges.append(Edge(*ends, loop.similarity, _place(loop, chunks, centers), deviation, True))
    parts = _components(count, edges)
    chained = _spread(count, edges, parts)
    fixed = [part[0] for part in parts]
    solved, weights = solve(chained, np.asarray(sizes, np.float64), edges, fixed)
    of_loops = dict(zip(taken, weights[len(edges) - len(taken) :].tolist(), strict=True))
    number = {node: p for p, part in enumerate(chain) for node in part}
    drift: list[dict[str, float] | None] = []
    for i, loop in enumerate(loops):
        ends = loop.candidate.first, loop.candidate.second
        closes = of_loops.get(i, 0.0) > 0 and number[ends[0]] == number[ends[1]]
        drift.append(_drift(before, loop, _place(loop, chunks, centers), sizes) if closes else None)
    order = sorted(parts, key=lambda part: (-len(part), part[0]))
    return Joined(
        solved, chained, tuple(order), tuple(of_loops.get(i, 0.0) for i in range(len(loops))),
        tuple(drift),
    )  # fmt: skip


def _components(count: int, edges: Sequence[Edge]) -> list[tuple[int, ...]]:
    """Returns the connected components of the graph, the nodes of each in ascending order."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ends = np.array([(edge.first, edge.second) for edge in edges], int).reshape(-1, 2)
    graph = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(count, count))
    total, labels = connected_components(graph, directed=False)
    return [tuple(np.flatnonzero(labels == label).tolist()) for label in range(total)]


def _spread(count: int, edges: Sequence[Edge], parts: Sequence[Sequence[int]]) -> Sim3:
    """Chains similarities from the first node of each part along the edges that reach each node."""
    known: dict[int, Sim3] = {part[0]: identity() for part in parts}
    waiting = list(edges)
    while waiting:
        left = []
        for edge in waiting:
            if edge.first in known:
                known.setdefault(edge.second, compose(known[edge.first], edge.similarity))
            elif edge.second in known:
                known[edge.first] = compose(known[edge.second], inverse(edge.similarity))
            else:
                left.append(edge)
        waiting = left
    every = [known[node] for node in range(count)]
    return Sim3(*(np.stack([getattr(one, name) for one in every]) for name in Sim3._fields))


def _place(loop: Loop, chunks: Sequence[Chunk], centers: Sequence[np.ndarray]) -> np.ndarray:
    """Returns where the camera of a loop's second frame is, in the world of the second chunk."""
    second = loop.candidate.second
    return centers[second][loop.candidate.second_frame - chunks[second].start]


def _drift(
    chained: Sim3, loop: Loop, place: np.ndarray, sizes: Sequence[float]
) -> dict[str, float]:
    assert loop.similarity is not None
    a, b = (
        Sim3(*(part[node] for part in chained))
        for node in (loop.candidate.first, loop.candidate.second)
    )
    apart = compose(inverse(loop.similarity), compose(inverse(a), b))
    size = sizes[loop.candidate.second]
    cosine = np.clip((np.trace(apart.rotation) - 1) / 2, -1, 1)
    return {
        "scale": float(apart.scale),
        "degrees": float(np.degrees(np.arccos(cosine))),
        "distance": float(np.linalg.norm(apply(apart, place) - place) / size),
    }


def summary(
    joined: Joined, joints: Sequence[Joint | None], loops: Sequence[Loop]
) -> dict[str, Any]:
    """Returns facts about joints, parts, loops and drift as plain data for the report."""
    faults = [
        {"chunk": j, "fault": joint.fault}
        for j, joint in enumerate(joints)
        if joint is not None and joint.fault
    ]
    good = [joint for joint in joints if joint is not None and not joint.fault]
    drifts = [one for one in joined.drift if one is not None]
    worst = max((abs(np.log(one["scale"])) for one in drifts), default=None)
    return {
        "parts": [list(part) for part in joined.parts],
        "failed_joints": faults,
        "joints": {
            "count": len(good),
            "median_error": float(np.median([joint.error for joint in good])) if good else None,
            "least_agreeing": min((joint.agreeing for joint in good), default=None),
        },
        "scales": {"least": float(joined.similarities.scale.min()),
                   "most": float(joined.similarities.scale.max())},
        "scale_drift": None if worst is None else float(np.exp(worst)),
        "loops": [
            {
                "chunks": [loop.candidate.first, loop.candidate.second],
                "frames": [loop.candidate.first_frame, loop.candidate.second_frame],
                "alike": loop.candidate.alike,
                "weight": weight,
                "drift_before": drift,
                "fault": loop.fault
                or ("" if weight else "does not fit the other joints and loops"),
            }
            for loop, weight, drift in zip(loops, joined.weights, joined.drift, strict=True)
        ],
    }  # fmt: skip
