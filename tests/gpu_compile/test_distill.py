"""Distilling on a described H200: what the teacher adds to the student's memory.

docs/benchmarks.md has the figure of the full size, whose two compilations take minutes each.
"""

import jax.numpy as jnp
import pytest
from flax import nnx

from lite3r_jax.attention.plan import Plan
from lite3r_jax.attention.presets import plan
from lite3r_jax.backbones.dinov2 import EncoderConfig
from lite3r_jax.backbones.heads import DPTConfig
from lite3r_jax.backbones.vggt import ENTRY as BACKBONE
from lite3r_jax.backbones.vggt.camera_head import CameraConfig
from lite3r_jax.backbones.vggt.config import TrunkConfig, VGGTConfig
from lite3r_jax.distillation.loss import DistillLoss, select_sites
from lite3r_jax.distillation.options import MatchOptions
from lite3r_jax.distillation.teacher_student import make_pair, selectors
from lite3r_jax.distillation.trainable import trained_paths
from lite3r_jax.layers.rngs import traced_rngs
from lite3r_jax.training.optimizer import OptimizerOptions
from lite3r_jax.training.sharding import MeshOptions, make_mesh
from lite3r_jax.training.step import StepOptions
from lite3r_jax.training.task import LossOptions, task_loss
from lite3r_jax.training.trainer import make_trainer
from tools.benchmark.train_memory import described, shapes

pytestmark = [
    pytest.mark.gpu_compile,
    pytest.mark.filterwarnings("ignore:.*Triton.*:DeprecationWarning"),
]


CONFIG = VGGTConfig(
    embed_dim=256,
    vit=EncoderConfig(4, 4),
    aggregator=TrunkConfig(4, 4),
    camera_head=CameraConfig(trunk_depth=1, num_heads=4),
    dpt=DPTConfig(64, (64, 64, 64, 64), (0, 1, 2, 3)),
)


def test_the_teacher_adds_little_to_the_memory_of_a_step():
    """At 2 views, with layers recomputed, where activations hide least of it."""
    mesh = make_mesh(MeshOptions(1, 1, 1), described(1))
    student = nnx.eval_shape(
        lambda: BACKBONE.build(
            CONFIG,
            heads=("camera", "depth"),
            plan=plan("sla_global", keep=0.3, implementation="triton"),
            dtype=jnp.bfloat16,
            rngs=traced_rngs(0),
        )
    )
    trained = trained_paths(student, "strategy")
    pair = make_pair(student, trained)
    sites = select_sites(student, Plan(), "replaced")
    task = task_loss(LossOptions(kind="multitask", frame_chunk=1))

    def peak(weight: float) -> int:
        """Bytes; without a weight nothing of the teacher is computed."""
        trainer = make_trainer(
            pair,
            DistillLoss(MatchOptions(weight=weight), sites, 100, task=task,
                        forward=(("remat", True),)),
            steps=100,
            optimizer=OptimizerOptions(weight_decay=0.0),
            options=StepOptions(),
            mesh=mesh,
            trainable=selectors(trained),
        )  # fmt: skip
        batch = shapes(1, 2, (252, 252), mesh, 1)
        lowered = trainer.step.lower(trainer.shapes(), trainer.frozen, batch)
        m = lowered.compile({"xla_gpu_enable_triton_gemm": False}).memory_analysis()
        held = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
        print(f"weight {weight}: {(held + m.temp_size_in_bytes) / 2**30:.2f} GiB")
        return held + m.temp_size_in_bytes

    assert peak(0.1) < 1.35 * peak(0.0)
