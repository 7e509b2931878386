"""Devices that are not there, and proofs of kernels on them."""

import contextlib
import tempfile
from pathlib import Path

import jax

from lite3r_jax.kernels import proofs


@contextlib.contextmanager
def described_gpu(kind="NVIDIA H200"):
    """What is traced inside is for that GPU, on which no kernel was proven."""
    gpu = jax.sharding.AbstractDevice(kind, num_cores=None, platform="cuda")
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=gpu)
    with (
        tempfile.TemporaryDirectory() as folder,
        proofs.kept_in(Path(folder)),
        jax.sharding.use_abstract_mesh(mesh),
    ):
        yield


@contextlib.contextmanager
def proven_gpu(kind="NVIDIA H200"):
    """As `described_gpu`, and every kernel was proven on it."""
    with described_gpu(kind), proofs.assumed():
        yield


def proof(operator, name, device, failures=()):
    """A record of today's code and jax."""
    return proofs.Proof(
        operator.name, name, device.kind, device.compute_capability, jax.__version__, "0.1.0",
        proofs.digest(operator.sources), "2026-11-30", "in a test", ("case",), (), tuple(failures),
    )  # fmt: skip
