"""The forward pass of a deployed model as a file that runs without this package (`jax.export`).

The program is a function of two arguments, `weights` (path -> array, everything that the
safetensors files beside it hold) and `images` [1, S, H, W, 3] float32 in [0, 1], and returns the
fields of `Prediction` that are there, by name. docs/deployment.md has the few lines that run it.

Weights stay beside the program and are not constants in it: a program of several GB could not be
stored (its format, a FlatBuffer, ends at 2 GB), every size would bring its own copy of the weights,
and XLA would fold what is computed from constants when it compiles.

A program is for one kind of device and one shape, because attention kernels are chosen while it is
traced. One for CUDA can be made without a GPU. It then has the Triton kernels of Sparse Linear
Attention and dense attention in plain XLA; made on a GPU, dense attention in bfloat16 is cuDNN's.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, get_args

import jax
import jax.export
import jax.numpy as jnp

from lite3r_jax.backbones.base import Prediction
from lite3r_jax.deploy.manifest import Platform, Program
from lite3r_jax.errors import InputError
from lite3r_jax.weights.abstract import AbstractModel

# Calls that XLA serves itself, without a promise that later versions will: kernels of Pallas'
# Triton lowering, and cuDNN attention. Those of Mosaic have that promise.
_KERNELS = ("__gpu$xla.gpu.triton", "__cudnn$fmhaSoftmax")
# What programs for CUDA are traced for where there is no GPU.
_DESCRIBED = "NVIDIA H200"


def export_program(model: AbstractModel, program: Program) -> tuple[Program, bytes]:
    """Serialize the forward pass of a deployed model for one platform and one shape.

    Args:
        model: deployed, without numbers.
        program: shape, platform and compute dtype of the program.

    Returns:
        (the program with `jax`, `weights` and `outputs` filled in, the bytes of its file).

    Raises:
        InputError: a platform that is not known, a shape that the model cannot read, or the package
            flatbuffers is missing.
    """
    shapes = {
        path: jax.ShapeDtypeStruct(variable.shape, variable.dtype)
        for path, (_, variable) in model.variables.items()
    }
    size = (1, program.views, program.height, program.width, 3)

    # as in `infer.memory`: more frames at a time are faster on a GPU only
    frame_chunk = min(8, program.views) if program.platform == "cuda" else 1

    def forward(weights: dict[str, jax.Array], images: jax.Array) -> dict[str, jax.Array]:
        filled: Any = model.fill(weights)
        prediction, _ = filled(images, frame_chunk=frame_chunk)
        fields = ((f.name, getattr(prediction, f.name)) for f in dataclasses.fields(Prediction))
        return {name: x for name, x in fields if isinstance(x, jax.Array)}

    calls = _KERNELS if program.platform == "cuda" else ()
    checks = [jax.export.DisabledSafetyCheck.custom_call(name) for name in calls]
    with _traced_for(program.platform), _without_source_lines():
        exported = jax.export.export(
            jax.jit(forward), platforms=[program.platform], disabled_checks=checks
        )(shapes, jax.ShapeDtypeStruct(size, jnp.float32))
    outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    if not outputs:
        raise InputError(f"{program.file_name}: a model without heads gives nothing to compute")
    program = dataclasses.replace(
        program,
        jax=jax.__version__,
        weights=tuple(sorted({f"{path.partition('/')[0]}.safetensors" for path in shapes})),
        outputs=tuple(sorted(outputs)),
    )
    return program, bytes(exported.serialize())


def check_program(program: Program) -> None:
    """Refuse a program that cannot be made, as far as that is known without the model.

    Raises:
        InputError: see `export_program`.
    """
    if program.platform not in get_args(Platform):
        known = ", ".join(get_args(Platform))
        raise InputError(f"platform: expected one of {known}, got {program.platform!r}")
    if program.platform == "cpu" and jax.default_backend() != "cpu":
        raise InputError("platform: a program for cpu is made on the CPU; set JAX_PLATFORMS=cpu")
    if min(program.views, program.height, program.width) < 1:
        raise InputError(f"{program.file_name}: expected at least one view and one pixel")
    try:
        import flatbuffers  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"{program.file_name}: needs the package flatbuffers; pip install 'lite3r_jax[deploy]'"
        ) from error


def _traced_for(platform: str) -> Any:
    """Returns a context in which attention kernels are chosen for the given platform."""
    here = "cuda" if jax.default_backend() == "gpu" else jax.default_backend()
    if platform == here:
        return nullcontext()
    device = jax.sharding.AbstractDevice(_DESCRIBED, num_cores=None, platform=platform)
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device))


@contextmanager
def _without_source_lines() -> Iterator[None]:
    """Keeps source files and lines, of callers too, out of a program and of kernels in it."""
    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)
