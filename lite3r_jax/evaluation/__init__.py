"""Evaluation of a model on a protocol: metrics of every scene, means, intervals, baselines."""

from lite3r_jax.evaluation.cached_scenes import CachedScenes
from lite3r_jax.evaluation.evaluator import Report, evaluate
from lite3r_jax.evaluation.protocols import Protocol, open_protocol
from lite3r_jax.evaluation.score import ScoreOptions
from lite3r_jax.evaluation.summary import Estimate

__all__ = [
    "CachedScenes",
    "Estimate",
    "Protocol",
    "Report",
    "ScoreOptions",
    "evaluate",
    "open_protocol",
]
