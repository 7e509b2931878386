"""Names of the pi^3 checkpoint (yyfz233/Pi3) and of the parameters here.

Upstream names: pi3/models/pi3.py, pi3/models/dinov2/*, pi3/models/layers/*. One upstream list holds
all blocks of the trunk, frame blocks at even numbers and global ones at odd.
"""

from collections.abc import Mapping

from lite3r_jax.backbones import tensor_rules
from lite3r_jax.backbones.pi3.config import Pi3Config, license_of
from lite3r_jax.backbones.tensor_rules import blocks, layer
from lite3r_jax.layers.patch_embed import IMAGE_MEAN, IMAGE_STD
from lite3r_jax.name_map import Checkpoint, NameMap, Skip, TensorRule, Transform

FIELDS: Mapping[str, Mapping[str, str]] = {
    **tensor_rules.FIELDS,
    "token": {
        "cls_token": "cls_token",
        "pos_embed": "pos_embed",
        "register_tokens": "register_tokens",
    },
    "head_decoder": {
        "point_decoder": "depth_head/point/decoder",
        "conf_decoder": "depth_head/conf/decoder",
        "camera_decoder": "camera_head/decoder",
    },
    "head_dense": {"projects": "projects", "linear_out": "out"},
    "pixels": {"point_head": "depth_head/point", "conf_head": "depth_head/conf"},
    # layers/camera_head.py
    "unit": {"0": "0", "1": "1"},
    "unit_dense": {"res_conv1": "fc1", "res_conv2": "fc2", "res_conv3": "fc3"},
    "camera_dense": {
        "more_mlps.0": "fc1",
        "more_mlps.2": "fc2",
        "fc_t": "translation",
        "fc_rot": "rotation",
    },
}
_CONSTANT = "mean and deviation of ImageNet, by which images are normalized in any case"


def name_map(config: Pi3Config) -> NameMap:
    """The map of a model of these sizes."""
    depth = config.decoder.depth
    return NameMap(
        fields=FIELDS,
        rules=(
            TensorRule("encoder.{token}", "encoder/{token}"),
            TensorRule("encoder.norm.{affine}", "encoder/norm/{affine}"),
            *layer("encoder.patch_embed.proj", "encoder/proj", Transform.CONV),
            *blocks("encoder.blocks", "encoder/blocks"),
            TensorRule("register_token", "trunk/register_token"),
            *blocks("decoder", "trunk/frame_blocks", range(0, depth, 2)),
            *blocks("decoder", "trunk/global_blocks", range(1, depth, 2)),
            *layer("{head_decoder}.{head_dense}", "{head_decoder}/{head_dense}", Transform.LINEAR),
            *blocks("{head_decoder}.blocks", "{head_decoder}/blocks"),
            *layer("{pixels}.proj", "{pixels}/pixels", Transform.LINEAR),
            *layer(
                "camera_head.res_conv.{unit}.{unit_dense}",
                "camera_head/units/{unit}/{unit_dense}",
                Transform.LINEAR,
            ),
            *layer("camera_head.{camera_dense}", "camera_head/{camera_dense}", Transform.LINEAR),
        ),
        skips=tuple(
            Skip(name, _CONSTANT, "encoder/proj/kernel", (None, 2, None, None), values=values)
            for name, values in (("image_mean", IMAGE_MEAN), ("image_std", IMAGE_STD))
        ),
    )


CHECKPOINT = Checkpoint(
    title="pi^3",
    names=name_map,
    trunk="decoder",
    heads={"camera": "camera_decoder", "depth": "point_decoder"},
    license=license_of,
    relatives={
        r"(local|global)_decoder\..*": "Speed3R's sparse one, which is not supported; convert the"
        " dense model that it was made of: lite3r convert pi3, with the file of yyfz233/Pi3",
        r"(point|conf)_head\.(?!proj\.).*|(depth_encoder|ray_embed|pose_inject_blk)\..*": "Pi3X,"
        " which is not supported; convert its predecessor: lite3r convert pi3, with the file of"
        " yyfz233/Pi3",
    },
)
