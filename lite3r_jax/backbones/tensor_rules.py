"""Rules for the names of ViT blocks and DPT heads in the checkpoints of all backbones.

The backbones share these names because their originals share these layers. Upstream names:
dinov2/layers/*, vggt/heads/dpt_head.py, depth_anything_3/model/dpt.py.
"""

from collections.abc import Mapping

from lite3r_jax.name_map import TensorRule, Transform

FIELDS: Mapping[str, Mapping[str, str]] = {
    "affine": {"weight": "scale", "bias": "bias"},
    "block_norm": {
        "norm1": "norm1",
        "norm2": "norm2",
        "attn.q_norm": "attn/q_norm",
        "attn.k_norm": "attn/k_norm",
    },
    "block_dense": {
        "attn.qkv": "attn/qkv",
        "attn.proj": "attn/proj",
        "mlp.fc1": "mlp/fc1",
        "mlp.fc2": "mlp/fc2",
        "mlp.w12": "mlp/w12",
        "mlp.w3": "mlp/w3",
    },
    "layer_scale": {"ls1": "ls1", "ls2": "ls2"},
    "dpt_pointwise": {
        "projects.0": "projects/0",
        "projects.1": "projects/1",
        "projects.2": "projects/2",
        "projects.3": "projects/3",
        "scratch.output_conv2.2": "out_conv3",
    },
    "dpt_upsample": {"resize_layers.0": "upsample/0", "resize_layers.1": "upsample/1"},
    "dpt_conv": {
        "resize_layers.3": "downsample",
        "scratch.output_conv1": "out_conv1",
        "scratch.output_conv2.0": "out_conv2",
    },
    "reassemble": {
        "layer1_rn": "reassemble/0",
        "layer2_rn": "reassemble/1",
        "layer3_rn": "reassemble/2",
        "layer4_rn": "reassemble/3",
    },
    "refine": {
        "refinenet1": "refine/0",
        "refinenet2": "refine/1",
        "refinenet3": "refine/2",
        "refinenet4": "refine/3",
    },
    "unit": {"resConfUnit1": "unit1", "resConfUnit2": "unit2"},
    "unit_conv": {"conv1": "conv1", "conv2": "conv2"},
}


def layer(
    source: str,
    target: str,
    kernel: Transform,
    stack: str | None = None,
    layers: range | None = None,
) -> tuple[TensorRule, TensorRule]:
    """Returns the rules for the weight and the bias of one layer."""
    return (
        TensorRule(f"{source}.weight", f"{target}/kernel", kernel, stack, layers),
        TensorRule(f"{source}.bias", f"{target}/bias", Transform.IDENTITY, stack, layers),
    )


def blocks(source: str, target: str, layers: range | None = None) -> tuple[TensorRule, ...]:
    """Returns the rules for a stack of transformer blocks.

    Args:
        source: upstream name of the list of blocks.
        target: path of the stack.
        layers: which of the list are in the stack; None for all.
    """
    one = f"{source}.{{i}}"
    return (
        TensorRule(
            f"{one}.{{block_norm}}.{{affine}}",
            f"{target}/{{block_norm}}/{{affine}}",
            stack="i",
            layers=layers,
        ),
        TensorRule(
            f"{one}.{{layer_scale}}.gamma",
            f"{target}/{{layer_scale}}/gamma",
            stack="i",
            layers=layers,
        ),
        *layer(
            f"{one}.{{block_dense}}", f"{target}/{{block_dense}}", Transform.LINEAR, "i", layers
        ),
    )


def refinements(source: str, target: str, field: str = "refine") -> tuple[TensorRule, ...]:
    """Returns the rules for the layers that fuse the four levels of a dense head.

    `field` is the field of the name map that has the names of the levels.
    """
    here = f"{{{field}}}"
    return (
        *layer(f"{source}.scratch.{here}.out_conv", f"{target}/{here}/out", Transform.CONV1X1),
        *layer(
            f"{source}.scratch.{here}.{{unit}}.{{unit_conv}}",
            f"{target}/{here}/{{unit}}/{{unit_conv}}",
            Transform.CONV,
        ),
    )


def dpt(source: str, target: str) -> tuple[TensorRule, ...]:
    """Returns the rules for a dense head (DPT)."""
    return (
        TensorRule(f"{source}.norm.{{affine}}", f"{target}/norm/{{affine}}"),
        *layer(f"{source}.{{dpt_pointwise}}", f"{target}/{{dpt_pointwise}}", Transform.CONV1X1),
        *layer(f"{source}.{{dpt_upsample}}", f"{target}/{{dpt_upsample}}", Transform.DECONV),
        *layer(f"{source}.{{dpt_conv}}", f"{target}/{{dpt_conv}}", Transform.CONV),
        TensorRule(
            f"{source}.scratch.{{reassemble}}.weight",
            f"{target}/{{reassemble}}/kernel",
            Transform.CONV,
        ),
        *refinements(source, target),
    )
