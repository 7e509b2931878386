"""Sizes of the published Depth Anything 3 models, read from this package's or the hub's JSON."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from lite3r_jax.backbones.base import Published
from lite3r_jax.backbones.config_json import from_json
from lite3r_jax.errors import InputError


@dataclass(frozen=True)
class DA3Config:
    """Sizes of a Depth Anything 3; the defaults are DA3-Large.

    Attributes:
        img_size: side of the images that the position table was made for.
        patch_size: of the encoder.
        embed_dim: C.
        depth: L, blocks in all.
        num_heads: of every block.
        mlp_ratio: hidden size of the feed-forward layers over C.
        swiglu: whether these are gated.
        alt_start: first block with qk-norm, RoPE and camera token. From here on odd blocks attend
            over all views, even ones and all before within each view.
        out_layers: blocks whose tokens the heads read.
        features: width of the dense heads.
        out_channels: width of their four levels before fusion.
        camera_blocks: depth of the camera encoder.
        camera_heads: its attention heads.
    """

    img_size: int = 518
    patch_size: int = 14
    embed_dim: int = 1024
    depth: int = 24
    num_heads: int = 16
    mlp_ratio: float = 4.0
    swiglu: bool = False
    alt_start: int = 8
    out_layers: tuple[int, ...] = (11, 15, 19, 23)
    features: int = 256
    out_channels: tuple[int, ...] = (256, 512, 1024, 1024)
    camera_blocks: int = 4
    camera_heads: int = 16

    @property
    def early_blocks(self) -> range:
        """Numbers of the blocks before the alternation, which all attend within a view."""
        return range(self.alt_start)

    @property
    def lead_blocks(self) -> range:
        """Number of the global block before the first pair if `alt_start` is odd, else empty."""
        return range(self.alt_start, self.first_pair)

    @property
    def frame_blocks(self) -> range:
        """Numbers of the first blocks of the pairs, which attend within each view."""
        return range(self.first_pair, self.depth, 2)

    @property
    def global_blocks(self) -> range:
        """Numbers of the second blocks of the pairs, which attend over all views."""
        return range(self.first_pair + 1, self.depth, 2)

    @property
    def first_pair(self) -> int:
        """Number of the block that starts the first pair: the first even one from `alt_start`."""
        return self.alt_start + self.alt_start % 2


# Tables of the original: configs/da3-*.yaml and the factories in dinov2/vision_transformer.py.
PRESETS: Mapping[str, DA3Config] = MappingProxyType(
    {
        "da3-small": DA3Config(
            embed_dim=384,
            depth=12,
            num_heads=6,
            alt_start=4,
            out_layers=(5, 7, 9, 11),
            features=64,
            out_channels=(48, 96, 192, 384),
        ),
        "da3-base": DA3Config(
            embed_dim=768,
            depth=12,
            num_heads=12,
            alt_start=4,
            out_layers=(5, 7, 9, 11),
            features=128,
            out_channels=(96, 192, 384, 768),
        ),
        "da3-large": DA3Config(),
        "da3-giant": DA3Config(
            embed_dim=1536,
            depth=40,
            num_heads=24,
            swiglu=True,
            alt_start=13,
            out_layers=(19, 27, 33, 39),
        ),
    }
)


def _published(size: str, license: str, download: str, version: str = "") -> Published:
    repo = f"depth-anything/{size.upper()}{version}"
    return Published(size, repo, PRESETS[size.lower()], license, download)


PUBLISHED = (
    _published("DA3-Small", "Apache-2.0", "0.1 GB"),
    _published("DA3-Base", "Apache-2.0", "0.5 GB"),
    _published("DA3-Large", "CC-BY-NC-4.0", "1.6 GB"),
    _published("DA3-Large", "CC-BY-NC-4.0", "1.6 GB", "-1.1"),
    _published("DA3-Giant", "CC-BY-NC-4.0", "5.4 GB"),
    _published("DA3-Giant", "CC-BY-NC-4.0", "5.4 GB", "-1.1"),
)
# Names of the encoders in the hub form.
_NETS = {"vits": "da3-small", "vitb": "da3-base", "vitl": "da3-large", "vitg": "da3-giant"}


def config_from_json(data: dict[str, Any]) -> DA3Config:
    """Reads sizes from their JSON form, or from the config.json of a hub repository.

    Settings that are absent keep DA3-Large's values. The hub form is {"model_name": ..., "config":
    ...}; its tree, where there is one, must say the same as the published model of that name.

    Raises:
        InputError: unknown keys or model, wrong types, sizes that do not fit together.
    """
    if isinstance(data, dict) and "model_name" in data:
        config = _from_hub(data)
    else:
        config = from_json(DA3Config, data, "config")
    _check(config)
    return config


def _from_hub(data: dict[str, Any]) -> DA3Config:
    name = data["model_name"]
    if name not in PRESETS:
        raise InputError(
            f"config.model_name: {name!r} is not known here; choose one of: {', '.join(PRESETS)}"
        )
    if unknown := sorted(set(data) - {"model_name", "config"}):
        raise InputError(f"config: unknown keys {unknown}; expected model_name and config")
    config = PRESETS[name]
    tree = data.get("config", {})
    width = 2 * config.embed_dim
    expected = {
        "net": {
            "out_layers": list(config.out_layers),
            "alt_start": config.alt_start,
            "qknorm_start": config.alt_start,
            "rope_start": config.alt_start,
            "cat_token": True,
        },
        "head": {
            "dim_in": width,
            "output_dim": 2,
            "features": config.features,
            "out_channels": list(config.out_channels),
        },
        "cam_enc": {"dim_out": config.embed_dim},
        "cam_dec": {"dim_in": width},
    }
    net = next(key for key, preset in _NETS.items() if preset == name)
    expected["net"]["name"] = net
    for part, settings in expected.items():
        given = tree.get(part, {}) if isinstance(tree, dict) else None
        if not isinstance(given, dict):
            raise InputError(f"config.config.{part}: expected an object; see the hub's config.json")
        for key, value in settings.items():
            if given.get(key, value) != value:
                raise InputError(
                    f"config.config.{part}.{key}: {given[key]!r}, but {name} has {value!r}; "
                    "correct model_name, or give the sizes without it"
                )
    return config


def _check(config: DA3Config) -> None:
    c = config
    rules = [
        (c.img_size % c.patch_size == 0, "img_size must be a multiple of patch_size"),
        (c.embed_dim % (4 * c.num_heads) == 0, "embed_dim / num_heads must be a multiple of 4"),
        (c.embed_dim % c.camera_heads == 0, "camera_heads must divide embed_dim"),
        (c.alt_start >= 2, "alt_start must be at least 2"),
        (
            c.depth % 2 == 0 and c.depth >= c.first_pair + 2,
            "depth must be even, with at least one pair of blocks from alt_start on",
        ),
        (
            len(c.out_layers) == 4
            and all(c.first_pair <= i < c.depth for i in c.out_layers)
            and c.out_layers[-1] == c.depth - 1,
            f"out_layers must name 4 blocks from {c.first_pair} on, the last one last",
        ),
        (len(c.out_channels) == 4, "out_channels must have 4 entries"),
        (
            all(n % 4 == 0 and n > 0 for n in (*c.out_channels, c.features // 2))
            and c.features % 2 == 0,
            "out_channels and features / 2 must be multiples of 4",
        ),
    ]
    broken = [text for ok, text in rules if not ok]
    if broken:
        raise InputError(f"config: {'; '.join(broken)}")
