"""Color maps of evenly increasing brightness, for numbers from 0 to 1."""

import numpy as np

# Ten colors at equal steps along two maps of matplotlib (CC0), dark to bright.
INFERNO = (
    (0, 0, 4), (27, 12, 66), (75, 12, 107), (120, 28, 109), (165, 44, 96),
    (207, 68, 70), (237, 105, 37), (251, 154, 6), (247, 208, 60), (252, 255, 164),
)  # fmt: skip
VIRIDIS = (
    (68, 1, 84), (72, 40, 120), (62, 73, 137), (49, 104, 142), (38, 130, 142),
    (31, 158, 137), (53, 183, 121), (110, 206, 88), (181, 222, 43), (253, 231, 37),
)  # fmt: skip


def color_map(values: np.ndarray, colors: tuple[tuple[int, int, int], ...] = INFERNO) -> np.ndarray:
    """Converts numbers from 0 to 1 to RGB colors.

    Args:
        values: [...], clipped to 0 to 1.
        colors: two or more colors at equal steps from 0 to 1.

    Returns:
        uint8 [..., 3].
    """
    steps = np.linspace(0, 1, len(colors))
    channels = np.asarray(colors, np.float64).T
    table = np.stack([np.interp(np.linspace(0, 1, 256), steps, one) for one in channels], -1)
    return np.rint(table).astype(np.uint8)[np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)]


def gradient(colors: tuple[tuple[int, int, int], ...]) -> str:
    """Returns a CSS background that is a gradient of the colors from left to right."""
    return f"linear-gradient(to right,{','.join(f'rgb{c}'.replace(' ', '') for c in colors)})"
