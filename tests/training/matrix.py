"""Stop and continue a run at many points and compare with the run that was never stopped.

    python -m tests.training.matrix DEVICES WORKERS STOP,STOP,...

Data come through the real pipeline, the mesh splits scenes, parameters and views if there are eight
devices. One run is stopped at all the stops, one after the other: what it is at each of them is
what the run without stops was after that step. Prints the stops at which anything differed.
"""

import dataclasses
import json
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

from lite3r_jax.data.pipeline import Bucket, Part, Pipeline, PipelineOptions
from lite3r_jax.training.checkpoint import CheckpointOptions
from lite3r_jax.training.loop import LoopOptions, train
from lite3r_jax.training.run_dir import METRICS
from lite3r_jax.training.sharding import MeshOptions
from tests.data.pipeline.numbers import Numbers
from tests.training.toy import Toy, toy_trainer

STEPS = 24


def loss_fn(model, batch, key):
    """Images and cameras to depth; what is learned does not matter, but every input does."""
    x = batch["images"][:, :, ::2, ::2].reshape(*batch["images"].shape[:2], -1)[..., :24]
    x = x + 1e-3 * jax.random.normal(key, x.shape) + batch["extrinsics"][..., 0, 3:]
    error = model(x) - batch["depth"].mean((-1, -2))[..., None] / 100
    return (error**2).mean(), {}


def main(devices: int, workers: int, stops: list[int]) -> int:
    mesh = MeshOptions(2, 2, 2) if devices == 8 else MeshOptions()
    trainer = toy_trainer(STEPS, Toy(), loss_fn=loss_fn, mesh=mesh)
    options = PipelineOptions((Bucket(8, 2, 8, 8, 2), Bucket(4, 4, 8, 8)), seed=3, workers=workers)
    pipeline = Pipeline([Part(Numbers())], options)
    states = []

    def recorded(*arguments):
        new, metrics = trainer.step(*arguments)
        states.append(jax.tree.map(np.array, new))  # copies: the next step takes the buffers
        return new, metrics

    def go(folder: Path, until: int | None, trainer=trainer):
        with iter(pipeline) as batches:
            return train(
                trainer, batches, folder, options=LoopOptions(STEPS, log_every=1),
                checkpoint=CheckpointOptions(100), until=until,
            ).state  # fmt: skip

    differ = []
    with tempfile.TemporaryDirectory() as parent:
        straight, stopped = Path(parent) / "straight", Path(parent) / "stopped"
        go(straight, None, dataclasses.replace(trainer, step=recorded))
        lines = (straight / METRICS).read_bytes().splitlines()
        assert len(states) == len(lines) == STEPS
        for stop in [*stops, STEPS]:
            got = go(stopped, stop)
            same = jax.tree.leaves(jax.tree.map(np.array_equal, got, states[stop - 1]))
            if not all(same) or (stopped / METRICS).read_bytes().splitlines() != lines[:stop]:
                differ.append(stop)
    print(json.dumps({"devices": len(jax.devices()), "stops": len(stops), "differ": differ}))
    return 1 if differ else 0


if __name__ == "__main__":
    devices, workers, stops = sys.argv[1:]
    sys.exit(main(int(devices), int(workers), [int(stop) for stop in stops.split(",")]))
