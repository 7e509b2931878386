"""Devices that are not there, and proofs of kernels on them."""

import contextlib
import tempfile
from pathlib import Path

import jax

from lite3r_jax.kernels import proofs, self_check
from lite3r_jax.kernels.target import Device

GPU = Device("gpu", "NVIDIA H200", 9.0, driver="580.65.06")
TPU = Device("tpu", "TPU v5 lite", driver="0.0.42.1")


def described_gpu(kind="NVIDIA H200"):
    """What is traced inside is for that GPU, on which no kernel was proven."""
    return _described(kind, None, "cuda")


def described_tpu(kind="TPU v5 lite"):
    """As `described_gpu`, for a TPU."""
    return _described(kind, 1, "tpu")


@contextlib.contextmanager
def _described(kind, cores, platform):
    device = jax.sharding.AbstractDevice(kind, num_cores=cores, platform=platform)
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
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


@contextlib.contextmanager
def proven_tpu(kind="TPU v5 lite"):
    """As `proven_gpu`, for a TPU."""
    with described_tpu(kind), proofs.assumed():
        yield


def proof(operator, name, device, failure="", scope="numbers"):
    """A record of today's code, jax and package about one case."""
    return proofs.Proof(
        operator.name, name, device.kind, device.compute_capability, jax.__version__,
        device.driver, proofs.package_version(), proofs.digest(operator.sources), "2026-11-30",
        "in a test",
        (proofs.Result("case", scope, "failed" if failure else "passed", failure),),
    )  # fmt: skip


def in_this_process(operator, checks, device=GPU):
    """A `self_check.Runner` without a second process, as if that device were here."""

    def run(name, implementation, scopes, quick, kind):
        del name, kind
        for check in checks(implementation):
            wanted = scopes is None or operator.scope(check.call) in scopes
            if wanted and (check.quick or not quick):
                yield self_check.run_case(operator, implementation, check, device)

    return run
