"""Endless batches of posed views for training, made in worker processes (grain).

What a step reads is a pure function of (seed, step): no shuffle buffer, no generator whose state
must be carried along. So the order does not depend on the number of workers or processes, any step
can be made again alone, and the state of an iterator is one number.
"""

from lite3r_jax.data.pipeline.batch import Batch, SampleId
from lite3r_jax.data.pipeline.iterator import BatchIterator, Pipeline
from lite3r_jax.data.pipeline.options import Bucket, Part, PipelineOptions, parse_buckets
from lite3r_jax.data.pipeline.schedule import Draw, Schedule

__all__ = [
    "Batch",
    "BatchIterator",
    "Bucket",
    "Draw",
    "Part",
    "Pipeline",
    "PipelineOptions",
    "SampleId",
    "Schedule",
    "parse_buckets",
]
