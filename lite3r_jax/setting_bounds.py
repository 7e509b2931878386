"""The bounds of all numeric settings, in one table.

A number out of bounds is a slip of the keyboard or an attack: it would run for years, ask for more
memory than there is, or stop a run at its end. Conditions between several settings of a run are
checked by the settings' own classes.
"""

import re

from lite3r_jax.errors import InputError

_COUNT, _SEED, _WEIGHT = (0, 10**9), (0, 2**32 - 1), (0, 1e6)

BOUNDS: tuple[tuple[str, float, float], ...] = (
    # pattern of the dotted name, least, most; the first that matches counts
    (r".*\bseed", *_SEED),
    (r"port", 0, 65535),
    (r"images\.size", 0, 10**9),  # of an edge, or in pixels; see data.images.fit_image
    (r".*\.max_image_side", 14, 16384),
    (r"images\.max_pixels", 1, 10**10),
    (r"images\.min_views", 1, 10**6),
    (r"video\.fps", 0, 1000),
    (r"video\..*", *_COUNT),
    (r"compute\.memory_limit", 0, 1e6),
    (r"compute\.frame_chunk", 0, 10**6),
    (r"processes\.number", -1, 10**5),
    (r"processes\.timeout", 1, 10**5),
    (r"processes\.\w+", 0, 10**5),
    (r"refine\.corners", 20, 10**5),
    (r"refine\.(partners|rounds)", 1, 1000),
    (r"refine\.max_side", 100, 32_000),
    (r".*\.conf_percentile", -1, 100),
    (r".*\.(max_points|sparse_points)", *_COUNT),
    (r".*\.voxel", 0, 1e9),
    (r".*\.frustum", 0, 1),
    (r"export\.depth_step", 1e-12, 1e9),
    (r"export\.page\.max_megabytes", 0, 2000),
    (r"small_teacher\.auxiliary\.width", 1, 4096),
    (r"small_teacher\.auxiliary\.fade_\w+", *_COUNT),
    (r"small_teacher\.dense_fraction", 0.01, 1),
    (r"small_teacher\.(auxiliary\.)?\w+", *_WEIGHT),
    (r"train\.count", 0, 10**13),
    (r"train\.data\.augmentation\.\w+", 0, 100),
    (r"train\.data\.workers", 0, 1024),
    (r"train\.data\.prefetch", 0, 10**4),
    (r"train\.data\.renew", *_COUNT),
    (r"train\.data\.\w+", 1, 10**9),
    (r"train\.loss\.frame_chunk", 1, 10**6),
    (r"train\.loss\.multitask_camera\.min_valid_pixels", -1, 10**9),
    (r"train\.loss\.scale_aligned\.samples", 1, 10**6),
    (r"train\.loss\..*", *_WEIGHT),
    (r"train\.optimizer\.(learning_rate|weight_decay)", 0, 1000),
    (r"train\.optimizer\.(warmup|decay_steps)", *_COUNT),
    (r"train\.optimizer\.\w+", 0, 1),
    (r"train\.(step|loop|checkpoint)\.\w+", *_COUNT),
    (r"train\.mesh\.\w+", 0, 10**6),
    (r"distill\.rank", 1, 65536),
    (r"distill\.match\.\w+", *_WEIGHT),
    (r"evaluate\.batch", 1, 4096),
    (r"evaluate\.resamples", 1, 10**6),
    (r"evaluate\.pictures", 0, 1000),
    (r"evaluate\..*", *_COUNT),
    (r"probe\.threshold", 1, 1000),
    (r"serve\.max_upload_megabytes", 0.001, 1e6),
    (r"serve\.max_\w+", 1, 10**6),
    (r"probe\.budget", 0, 1),
    (r"probe\.budget_views", 0, 10**6),
    (r"probe\.tokens", 0, 10**4),
    (r"bench\.seconds", 0, 1e6),
    (r"bench\.runs", 1, 10**5),
    (r"bench\.warmup", 0, 10**4),
)


def bounds_of(name: str) -> tuple[float, float] | None:
    """Returns least and most of the setting with a dotted name; None where the table has no row."""
    for pattern, least, most in BOUNDS:
        if re.fullmatch(pattern, name):
            return least, most
    return None


def check_number(name: str, value: float, where: str) -> None:
    """Raises if a number is not finite, or out of the bounds of its setting.

    Args:
        name: dotted name of the setting.
        value: of the right type.
        where: what messages call it.

    Raises:
        InputError: it is not finite, or out of bounds.
    """
    least, most = bounds_of(name) or (-1e300, 1e300)
    if not least <= value <= most:
        text = str(value) if len(str(value)) < 25 else f"{str(value)[:20]}..."
        raise InputError(f"{where}: expected {least:g} to {most:g}, got {text}")
