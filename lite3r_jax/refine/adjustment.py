"""Bundle adjustment by pycolmap: optimizes cameras and points to fit the observations best."""

import signal
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np

from lite3r_jax.errors import InputError
from lite3r_jax.refine.geometry_of_views import Cameras
from lite3r_jax.refine.observations import Observations
from lite3r_jax.refine.options import CameraModel


@dataclass(frozen=True, eq=False)
class Lenses:
    """Which views share the intrinsics of one camera, and which intrinsics are adjusted.

    Attributes:
        group: int [S], index of the camera of each view, from 0.
        sizes: int [S, 2], (width, height) of the photos; equal within a group.
        model: COLMAP's camera model.
        focal: whether focal lengths are adjusted.
        center: whether principal points are adjusted.
    """

    group: np.ndarray
    sizes: np.ndarray
    model: CameraModel = "SIMPLE_PINHOLE"
    focal: bool = True
    center: bool = False

    @property
    def focals(self) -> int:
        """Number of focal lengths that a camera has."""
        return 2 if self.model == "PINHOLE" else 1

    def joined(self, cameras: Cameras) -> Cameras:
        """Returns cameras whose views share, in each group, the median intrinsics of the group.

        With other models than PINHOLE the two focal lengths become one, their geometric mean.
        """
        joined = cameras.intrinsics.copy()
        radial = None if cameras.radial is None else cameras.radial.copy()
        for group in np.unique(self.group):
            mine = self.group == group
            joined[mine] = np.median(joined[mine], axis=0)
            if radial is not None:  # views that are not tied have none
                known = radial[mine][radial[mine] != 0]
                radial[mine] = np.median(known) if len(known) else 0.0
        if self.model != "PINHOLE":
            focal = np.sqrt(joined[:, 0, 0] * joined[:, 1, 1])
            joined[:, 0, 0] = joined[:, 1, 1] = focal
        return Cameras(cameras.extrinsics, joined, radial)


def require_pycolmap() -> Any:
    """Imports and returns the module pycolmap, and keeps the handler of SIGTERM.

    Raises:
        InputError: pycolmap is not installed.
    """
    here = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if here else None
    try:
        import pycolmap
    except ImportError as error:
        raise InputError(
            "refine: needs pycolmap and OpenCV; pip install 'lite3r_jax[refine]', or leave"
            f" refinement out ({error})"
        ) from error
    if handler is not None:  # importing it puts one that prints a stack in its place
        signal.signal(signal.SIGTERM, handler)
    return pycolmap


def adjust(
    obs: Observations,
    cameras: Cameras,
    points: np.ndarray,
    lenses: Lenses,
    loss_scale: float,
    fixed_poses: bool = False,
    tolerance: float = 1e-6,
) -> tuple[Cameras, np.ndarray]:
    """Adjusts cameras and points to the observations, under Cauchy's loss.

    Views without observations do not change; two of the cameras fix the position, orientation and
    scale of the world.

    Args:
        obs: observations, of two or more views for each track.
        cameras: initial cameras; intrinsics are equal within a group of `lenses`.
        points: initial points [N, 3].
        lenses: which views share a camera, and which intrinsics are adjusted.
        loss_scale: error in pixels from which an observation counts less.
        fixed_poses: whether poses do not change.
        tolerance: relative change of the cost at which the optimization stops.

    Returns:
        (cameras, points [N, 3]).

    Raises:
        InputError: pycolmap is not installed.
    """
    pycolmap = require_pycolmap()
    model = _reconstruction(pycolmap, obs, cameras, points, lenses)
    config = pycolmap.BundleAdjustmentConfig()
    for view in np.unique(obs.view).tolist():
        config.add_image(view + 1)
        if fixed_poses:
            config.set_constant_rig_from_world_pose(model.images[view + 1].frame_id)
    if not fixed_poses:
        config.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    options = pycolmap.BundleAdjustmentOptions()
    options.refine_focal_length = lenses.focal
    options.refine_principal_point = lenses.center
    options.refine_extra_params = lenses.model == "SIMPLE_RADIAL" and lenses.focal
    options.print_summary = False
    options.ceres.loss_function_type = pycolmap.LossFunctionType.CAUCHY
    options.ceres.loss_function_scale = loss_scale
    options.ceres.solver_options.num_threads = 1  # with more, two runs differ in their last bits
    options.ceres.solver_options.function_tolerance = tolerance
    level = pycolmap.logging.minloglevel
    pycolmap.logging.minloglevel = pycolmap.logging.ERROR  # steps that fail are tried again shorter
    try:
        pycolmap.create_default_bundle_adjuster(options, config, model).solve()
    finally:
        pycolmap.logging.minloglevel = level
    extrinsics, intrinsics = cameras.extrinsics.copy(), cameras.intrinsics.copy()
    radial = np.zeros(len(lenses.group)) if lenses.model == "SIMPLE_RADIAL" else None
    first = {int(g): int(np.argmax(lenses.group == g)) for g in np.unique(lenses.group)}
    for view, group in enumerate(lenses.group.tolist()):
        if not fixed_poses:
            extrinsics[view] = model.images[view + 1].cam_from_world().matrix()
        p = model.cameras[first[group] + 1].params
        n = lenses.focals
        fx, fy, cx, cy = p[0], p[n - 1], p[n] - 0.5, p[n + 1] - 0.5
        intrinsics[view] = [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]
        if radial is not None:
            radial[view] = p[n + 2]
    moved = np.array([model.points3D[i + 1].xyz for i in range(len(points))]).reshape(-1, 3)
    return Cameras(extrinsics, intrinsics, radial), moved


def _reconstruction(
    pycolmap: Any, obs: Observations, cameras: Cameras, points: np.ndarray, lenses: Lenses
) -> Any:
    """Builds a COLMAP model: images and cameras have the ids view + 1, points track + 1."""
    model = pycolmap.Reconstruction()
    k = cameras.intrinsics
    for group in np.unique(lenses.group):
        view = int(np.argmax(lenses.group == group))
        focal = [k[view, 0, 0], k[view, 1, 1]][: lenses.focals]
        bent = [0.0 if cameras.radial is None else cameras.radial[view]]
        bent = bent if lenses.model == "SIMPLE_RADIAL" else []
        width, height = lenses.sizes[view].tolist()
        camera = pycolmap.Camera(
            model=lenses.model,
            width=width,
            height=height,
            # COLMAP's pixels have centers at halves
            params=[*focal, *(k[view, :2, 2] + 0.5), *bent],
            camera_id=view + 1,
        )
        model.add_camera_with_trivial_rig(camera)
    index = np.empty(len(obs), np.intp)  # of each observation in its image
    for view, group in enumerate(lenses.group.tolist()):
        mine = np.flatnonzero(obs.view == view)
        index[mine] = np.arange(len(mine))
        image = pycolmap.Image(
            name=str(view),
            camera_id=int(np.argmax(lenses.group == group)) + 1,
            image_id=view + 1,
        )
        image.points2D = pycolmap.Point2DList(
            [pycolmap.Point2D(xy) for xy in obs.pixel[mine] + 0.5]
        )
        pose = cameras.extrinsics[view]
        rigid = pycolmap.Rigid3d(pycolmap.Rotation3d(pose[:, :3]), pose[:, 3])
        model.add_image_with_trivial_frame(image, rigid)
    ends = np.flatnonzero(np.diff(obs.track, append=-1)) + 1
    views, indices = (obs.view + 1).tolist(), index.tolist()
    start = 0
    for point, end in zip(points, ends.tolist(), strict=True):
        track = pycolmap.Track()
        for i in range(start, end):
            track.add_element(views[i], indices[i])
        model.add_point3D(point, track)
        start = end
    return model
