"""A live viewer of one scene in the browser, with viser (optional extra `viewer`).

The HTML page of `export.page` needs no server and is what one passes on; the viewer is for scenes
with more points than a page holds.
"""

import math
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lite3r_jax import geometry
from lite3r_jax.errors import InputError
from lite3r_jax.exports.points import (
    PointCloud,
    PointOptions,
    diagonal,
    hidden_percentage,
    select_points,
)
from lite3r_jax.scene import Scene
from lite3r_jax.viewer import access

if TYPE_CHECKING:
    import viser


@dataclass(frozen=True)
class ViewerOptions:
    """Settings that the viewer starts with.

    Attributes:
        points: which points. The viewer holds points of every confidence, and its slider starts
            at `points.conf_percentile`; `points.max_points` limits what it holds.
        title: of the panel.
        frustum: size of the cameras as a fraction of that of the scene; more than 0.
        max_image_side: longer side of the photos on the cameras, in pixels.
        allowed_hosts: further names, with commas between, under which browsers may reach the
            viewer, for instance that of a proxy in front of it; see `access.refusal`.
    """

    points: PointOptions = field(default_factory=PointOptions)
    title: str = "Reconstruction"
    frustum: float = 0.03
    max_image_side: int = 320
    allowed_hosts: str = ""

    def __post_init__(self):
        if not 0 < self.frustum <= 1:
            raise InputError(f"viewer.frustum: expected more than 0, at most 1, got {self.frustum}")
        if self.max_image_side < 16:
            raise InputError(
                f"viewer.max_image_side: expected 16 pixels or more, got {self.max_image_side}"
            )


class Viewer:
    """A running viewer; also a context manager that closes it.

    Attributes:
        url: address to open in a browser.
    """

    def __init__(self, server: "viser.ViserServer", url: str, shown: "_Shown"):
        self.url = url
        self._server = server
        self._shown = shown
        # The lock is held until `close`. No Event: it takes a lock of its own in Python code, which
        # an interrupt there would leave held, so that `close` would wait for it forever.
        self._open = True
        self._serving = threading.Lock()
        self._serving.acquire()

    def __enter__(self) -> "Viewer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait(self) -> None:
        """Serve until Ctrl-C or until another thread calls `close`; then everything is closed."""
        try:
            with self._serving:
                pass
        except KeyboardInterrupt:
            pass
        finally:
            self.close()

    def close(self) -> None:
        """Stop serving and free the port; may be called again."""
        if not self._open:
            return
        self._open = False
        self._shown.close()
        self._server.stop()
        self._serving.release()


def serve(
    scene: Scene,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    options: ViewerOptions | None = None,
    report: Mapping[str, Any] | None = None,
) -> Viewer:
    """Serves a scene to browsers and returns its running viewer at once.

    Browsers see points with confidence, number and size under sliders, the cameras with their
    photos, and a switch for each view; a click on a camera looks through it. They can change what
    is shown, and nothing else: there are no uploads and no paths, viser's public share links are
    switched off, and pages of other web sites are refused (`viewer.access`). There is no password:
    whoever reaches host and port sees the scene.

    Args:
        scene: what is shown.
        host: address to listen on; the default can be reached from this machine only.
        port: to listen on; 0 takes a free one.
        options: the default is `ViewerOptions()`.
        report: facts about the run, shown as text.

    Raises:
        InputError: viser is missing; the port is in use or cannot be listened on; no valid point.
    """
    try:
        import viser
    except ImportError as error:
        raise InputError(
            "viewer: needs the package viser; install it with pip install 'lite3r_jax[viewer]'"
        ) from error

    options = options or ViewerOptions()
    cloud = select_points(scene, replace(options.points, conf_percentile=0.0))
    port = _free_port(host, port)

    class Server(viser.ViserServer):
        def request_share_url(self, verbose: bool = True) -> None:
            """Opens no public tunnel, although any browser could ask for one."""

    server = Server(host=host, port=port, label=options.title, verbose=False)
    if server.get_port() != port:
        server.stop()
        raise InputError(
            f"viewer: viser listens on port {server.get_port()} instead of {port}; another program"
            " came first, or _VISER_PORT_OVERRIDE is set"
        )
    try:
        access.guard(server, host, options.allowed_hosts)
        shown = _Shown(server, scene, cloud, options, report or {})
    except BaseException:
        server.stop()
        raise
    return Viewer(server, f"http://{host}:{port}", shown)


def _free_port(host: str, port: int) -> int:
    """Returns the port if it can be listened on; viser itself would silently take another one."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            probe.listen(1)
            return probe.getsockname()[1]
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"viewer: cannot listen on {host} port {port} ({reason}); choose another port"
        ) from error


class _Shown:
    """The scene that one server shows, and its controls."""

    def __init__(
        self,
        server: "viser.ViserServer",
        scene: Scene,
        cloud: PointCloud,
        options: ViewerOptions,
        report: Mapping[str, Any],
    ):
        self._server = server
        self._cloud = cloud
        # any part of a random order is spread evenly; the order of a slider's "number"
        self._order = np.random.default_rng(0).permutation(len(cloud))
        self._dirty = threading.Event()
        self._stop = False
        server.gui.configure_theme(dark_mode=True, show_logo=False, show_share_button=False)
        size = diagonal(cloud.xyz) or 1.0
        self._place_camera(scene, size)
        self._add_points(scene, options)
        self._add_cameras(scene, size, options)
        self._add_views(scene)
        self._add_report(report)
        self._update()
        self._worker = threading.Thread(target=self._follow, daemon=True)
        self._worker.start()

    def close(self) -> None:
        self._stop = True
        self._dirty.set()
        self._worker.join()

    def _place_camera(self, scene: Scene, size: float) -> None:
        """Places the camera of new browsers behind and above the first camera."""
        first = scene.camera_to_world[0]
        up, eye = -first[:, 1], first[:, 3]
        center = np.median(self._cloud.xyz, axis=0).astype(np.float64)
        start = self._server.initial_camera
        self._server.scene.set_up_direction(tuple(up.tolist()))
        start.position = eye - 0.4 * (center - eye) + 0.2 * size * up
        start.look_at = center
        start.near, start.far = size * 1e-3, size * 100

    def _add_points(self, scene: Scene, options: ViewerOptions) -> None:
        gui, count = self._server.gui, len(self._cloud)
        start = hidden_percentage(self._cloud.conf, options.points.conf_percentile)
        with gui.add_folder("Points"):
            self._share = gui.add_slider(
                "Hide uncertain points, %", 0.0, 99.0, 1.0, min(start, 99.0)
            )
            self._limit = gui.add_text("Confidence from", "", disabled=True)
            self._number = gui.add_slider("At most", 1, count, 1, count, visible=count > 1)
            width = gui.add_slider("Size", 0.1, 5.0, 0.1, 1.0)
        # about as large as a point's share of the pixels of its view
        eyes = scene.camera_to_world[self._cloud.view, :, 3]
        distance = np.median(np.linalg.norm(self._cloud.xyz - eyes, axis=-1))
        share = min(math.sqrt(scene.depth.size / count), 2.0)  # views overlap
        base = float(0.5 * share * distance / np.median(scene.intrinsics[:, 0, 0]))
        self._points = self._server.scene.add_point_cloud(
            "/points", self._cloud.xyz[:1], self._cloud.rgb[:1],
            point_size=base, point_shape="circle", point_shading="flat", precision="float32",
        )  # fmt: skip
        self._share.on_update(lambda _: self._dirty.set())
        self._number.on_update(lambda _: self._dirty.set())

        @width.on_update
        def _(_: Any) -> None:
            self._points.point_size = base * _bounded(width)

    def _add_cameras(self, scene: Scene, size: float, options: ViewerOptions) -> None:
        gui = self._server.gui
        with gui.add_folder("Cameras"):
            self._cameras_on = gui.add_checkbox("Show", True)
            scale = gui.add_slider("Size", 0.2, 5.0, 0.1, 1.0)
        height, width = scene.size
        quaternions = np.asarray(geometry.mat_to_quat(scene.camera_to_world[:, :, :3]))
        stride = math.ceil(max(height, width) / options.max_image_side)
        self._frusta = []
        base = options.frustum * size
        for s in range(scene.views):
            fov = 2 * math.atan(height / 2 / float(scene.intrinsics[s, 1, 1]))
            x, y, z, w = quaternions[s].tolist()
            frustum = self._server.scene.add_camera_frustum(
                f"/cameras/{s:04d}", fov, width / height, scale=base, color=(255, 158, 51),
                thickness=1.5, thickness_units="screen",
                image=scene.images[s, ::stride, ::stride], format="jpeg",
                wxyz=(w, x, y, z), position=scene.camera_to_world[s, :, 3],
            )  # fmt: skip
            frustum.on_click(_look_through)
            self._frusta.append(frustum)
        self._cameras_on.on_update(lambda _: self._dirty.set())

        @scale.on_update
        def _(_: Any) -> None:
            for frustum in self._frusta:
                frustum.scale = base * _bounded(scale)

    def _add_views(self, scene: Scene) -> None:
        gui = self._server.gui
        with gui.add_folder("Views", expand_by_default=scene.views <= 8):
            self._views_on = [
                gui.add_checkbox(f"{s + 1}: {name}", True) for s, name in enumerate(scene.names)
            ]
        for switch in self._views_on:
            switch.on_update(lambda _: self._dirty.set())

    def _add_report(self, report: Mapping[str, Any]) -> None:
        if not report:
            return
        with self._server.gui.add_folder("Run", expand_by_default=False):
            for name, value in _flatten(report):
                self._server.gui.add_text(name, value, disabled=True)

    def _follow(self) -> None:
        # A slider sends many values; only the last one counts, so they only set a flag.
        while self._dirty.wait() and not self._stop:
            self._dirty.clear()
            self._update()

    def _update(self) -> None:
        cloud = self._cloud
        limit = np.percentile(cloud.conf, _bounded(self._share), method="lower")
        views = np.array([switch.value for switch in self._views_on])
        order = self._order[: int(_bounded(self._number))]
        kept = order[(cloud.conf[order] >= limit) & views[cloud.view[order]]]
        with self._server.atomic():
            self._points.visible = len(kept) > 0
            if len(kept):  # browsers report an empty cloud as an error
                self._points.points = cloud.xyz[kept]
                self._points.colors = cloud.rgb[kept]
            self._limit.value = f"{limit:.4g}"
            for frustum, on in zip(self._frusta, views, strict=True):
                frustum.visible = self._cameras_on.value and bool(on)


def _bounded(slider: Any) -> float:
    """Returns the value of a slider, within its ends: a browser can send any number."""
    value = slider.value
    return min(max(value, slider.min), slider.max) if math.isfinite(value) else slider.min


def _look_through(event: Any) -> None:
    """Moves the camera of the browser that clicked to where the camera of the view is."""
    camera, frustum = event.client.camera, event.target
    with event.client.atomic():
        camera.wxyz = frustum.wxyz
        camera.position = frustum.position
        camera.fov = frustum.fov


def _flatten(report: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for name, value in report.items():
        if isinstance(value, Mapping):
            rows += _flatten(value, f"{prefix}{name} / ")
        else:
            rows.append((f"{prefix}{name}", str(value)))
    return rows
