"""From a model and a protocol to figures: metrics of every scene, means, intervals, baselines."""

from lite3r_jax.evaluate.evaluator import Report, evaluate
from lite3r_jax.evaluate.protocols import PROTOCOLS, Folders, Protocol, open_protocol
from lite3r_jax.evaluate.remembered import Remembered
from lite3r_jax.evaluate.score import ScoreOptions
from lite3r_jax.evaluate.summary import Estimate

__all__ = [
    "PROTOCOLS",
    "Estimate",
    "Folders",
    "Protocol",
    "Remembered",
    "Report",
    "ScoreOptions",
    "evaluate",
    "open_protocol",
]
