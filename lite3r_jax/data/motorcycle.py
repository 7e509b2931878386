"""The Motorcycle pair of Middlebury 2014, as scikit-image ships it: photos with true disparity.

`skimage.data.stereo_motorcycle` gives both rectified photos, 741 x 500, and the disparity d of the
left one, infinite where it is unknown. Its documentation has the calibration at this size: focal
length 994.978 pixels, principal point of the left camera (311.193, 254.877), 31.086 pixels between
the principal points, and a baseline of 193.001 mm. A pixel u of the left photo is at u - d in the
right one, and depth is f * baseline / (d + 31.086) (Scharstein et al., GCPR 2014).
"""

from collections.abc import Callable, Sequence

import numpy as np

from lite3r_jax.data.transforms import Frame, fit_frames
from lite3r_jax.data.views import Sample
from lite3r_jax.errors import InputError

FOCAL, CX, CY = 994.978, 311.193, 254.877
DOFFS = 31.086
BASELINE = 0.193001
SIZE = (500, 741)

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


class Motorcycle:
    """Source of the stereo pair as one scene of two frames; implements `data.views.SceneSource`.

    Lengths are meters. Frame 0 is the left photo and has depth, frame 1 the right one, which has
    none: its mask is false everywhere.
    """

    def __init__(self, read: Callable[[], Arrays] | None = None):
        """Takes the function that loads the arrays, which runs only when frames are read.

        Args:
            read: gives (left uint8 [500, 741, 3], right likewise, disparity float [500, 741]);
                None: those of scikit-image.
        """
        self.scenes: tuple[str, ...] = ("motorcycle",)
        self._read = read or _from_skimage

    def frames(self, scene: str) -> tuple[int, ...]:
        """Returns the numbers of both frames: 0 (left) and 1 (right)."""
        del scene
        return 0, 1

    def pairs(self, scene: str) -> None:
        """Returns None: with only one pair of frames there are no overlap scores."""
        del scene

    def read(self, scene: str, frames: Sequence[int], size: tuple[int, int]) -> Sample:
        """Reads frames as one sample, center-cropped and resized.

        Raises:
            InputError: scikit-image or its picture is not there, the arrays are not as documented,
                or a frame is neither 0 nor 1.
        """
        if wrong := [frame for frame in frames if frame not in (0, 1)]:
            raise InputError(f"motorcycle: expected frames 0 and 1, got {wrong[0]}")
        from PIL import Image

        left, right, disparity = self._read()
        arrays = {"left": left, "right": right, "disparity": disparity}
        for name, array in arrays.items():
            shape = SIZE if name == "disparity" else (*SIZE, 3)
            if array.shape != shape:
                raise InputError(
                    f"motorcycle: {name} is {list(array.shape)}, expected {list(shape)}; this"
                    " version of scikit-image has another picture"
                )
        both = []
        for number, photo in enumerate((left, right)):
            known = (number == 0) & np.isfinite(disparity) & (disparity > 0)
            depth = np.where(known, FOCAL * BASELINE / (np.where(known, disparity, 0) + DOFFS), 0)
            extrinsics = np.eye(3, 4)
            extrinsics[0, 3] = -BASELINE * number
            k = np.array([[FOCAL, 0, CX + DOFFS * number], [0, FOCAL, CY], [0, 0, 1]])
            both.append(
                Frame(
                    ("left", "right")[number],
                    Image.fromarray(photo),
                    extrinsics,
                    k,
                    depth.astype(np.float32),
                )
            )
        return fit_frames(
            [both[frame] for frame in frames], size, dataset="motorcycle", scene=scene, unit="m"
        )


def _from_skimage() -> Arrays:
    try:
        from skimage.data import stereo_motorcycle

        return stereo_motorcycle()
    except (ImportError, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"motorcycle: cannot be read ({reason}); install scikit-image 0.26 or later"
        ) from error
