"""How many frames the dense heads handle at a time where a call does not say."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from lite3r_jax.backbones.heads import default_frame_chunk
from tests.kernels.devices import described_gpu, described_tpu


def test_a_cpu_takes_one_and_other_devices_as_many_as_fit_up_to_eight():
    assert default_frame_chunk(518, 518) == 1
    with described_gpu():
        assert default_frame_chunk(518, 518) == 8
        assert default_frame_chunk(518, 518, 140 * 2**30) == 8
        assert default_frame_chunk(518, 518, 24 * 2**30) in (4, 8)
        assert default_frame_chunk(4 * 518, 4 * 518, 24 * 2**30) < default_frame_chunk(518, 518)
        assert default_frame_chunk(8 * 518, 8 * 518, 2**30) == 1
    with described_tpu():
        assert default_frame_chunk(518, 518) == 8


@pytest.mark.filterwarnings("ignore:.*Triton.*:DeprecationWarning")
def test_a_bare_call_compiled_for_a_gpu_handles_eight_frames_at_a_time(tiny_vggt):
    graph, state = nnx.split(tiny_vggt)
    images = jax.ShapeDtypeStruct((1, 16, 28, 28, 3), jnp.float32)

    def traced(**more):
        call = jax.jit(lambda s, x: nnx.merge(graph, s)(x, **more)[0])
        return str(call.trace(state, images).jaxpr)

    with described_gpu():
        assert traced() == traced(frame_chunk=8) != traced(frame_chunk=1)
