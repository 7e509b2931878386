"""The implementations of dense attention, softmax(q k^T / sqrt(D)) v."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from lite3r_jax.kernels.dense.blocked import blocked
from lite3r_jax.kernels.dense.reference import reference
from lite3r_jax.kernels.registry import Implementation, Operator
from lite3r_jax.kernels.target import Device, mesh_unfit_for_tpu_kernels, unfit_for_tpu_kernels


@dataclass(frozen=True)
class DenseCall:
    """Properties of a dense attention call that decide which implementations can run it.

    Attributes:
        head_dim: D.
        dtype: of q, k and v.
    """

    head_dim: int
    dtype: Any


def _reference(q: jax.Array, k: jax.Array, v: jax.Array, **_: Any) -> jax.Array:
    return reference(q, k, v)


def _cudnn(q: jax.Array, k: jax.Array, v: jax.Array, **_: Any) -> jax.Array:
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")


def _refuses_cudnn(device: Device, call: DenseCall) -> str | None:
    """Returns why cuDNN's flash attention cannot run a call on a device, or None.

    These are the conditions that jax checks when it lowers the call
    (jax/_src/cudnn/fused_attention_stablehlo.py). jax asks the GPU that is there, and so lowers the
    call for no other GPU.
    """
    if jnp.dtype(call.dtype) not in (jnp.bfloat16, jnp.float16):
        return f"it takes bfloat16 or float16 and this is {jnp.dtype(call.dtype)}"
    if device.platform != "gpu":
        return f"it is for NVIDIA GPUs and this is {device.kind}"
    if device.described:
        return f"jax lowers it only where the GPU is, and {device.kind} is only described here"
    capability = device.compute_capability
    if capability is not None and capability < 8:
        return f"it is for compute capability 8.0 or more and {device.kind} has {capability}"
    most = 128 if capability is None or capability < 9 else 256
    if call.head_dim % 8 or call.head_dim > most:
        return f"head dim {call.head_dim} is no multiple of 8 up to {most}"
    return None


def _tpu(q: jax.Array, k: jax.Array, v: jax.Array, **_: Any) -> jax.Array:
    # Imported when it is used: the package must not need the kernels' lowering.
    from lite3r_jax.kernels.dense.flash_tpu import flash_tpu

    return flash_tpu(q, k, v)


def _refuses_tpu(device: Device, call: DenseCall) -> str | None:
    if reason := unfit_for_tpu_kernels(device):
        return reason
    if jnp.dtype(call.dtype) != jnp.bfloat16:
        return f"it takes bfloat16 and this is {jnp.dtype(call.dtype)}"
    return None if call.head_dim in (64, 128) else f"head dim {call.head_dim} is not 64 or 128"


# `run` is called with q, k and v [B, T, N, D] and with q_block and k_block, the tokens that
# "blocked" works on at a time. cuDNN is NVIDIA's and jax's to prove; "tpu", jax's flash attention,
# is compared nevertheless, since how tokens are filled up for it is not jax's.
OPERATOR = Operator(
    "dense",
    (
        Implementation("reference", _reference),
        Implementation("blocked", blocked),
        Implementation("cudnn", _cudnn, _refuses_cudnn),
        Implementation("tpu", _tpu, _refuses_tpu, True, mesh_unfit_for_tpu_kernels),
    ),
    Path(__file__).parent,
    lambda call: f"{jnp.dtype(call.dtype)}, head dim {call.head_dim}",
)
