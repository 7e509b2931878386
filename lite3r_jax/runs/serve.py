"""`--mode=serve`: serves a web page and a JSON API for reconstructions, until interrupted."""

import asyncio
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lite3r_jax import exports
from lite3r_jax.attention.presets import parse_plan, plan_names
from lite3r_jax.errors import InputError, printable
from lite3r_jax.experiment import Experiment, changed, refuse_devices, require
from lite3r_jax.folder_lock import locked
from lite3r_jax.runs.long_video import refuse_chunks
from lite3r_jax.runs.recipes import settings_for
from lite3r_jax.runs.reconstruct import about_bundled
from lite3r_jax.runs.serve_engine import Process
from lite3r_jax.service.offer import Offer
from lite3r_jax.service.record import INPUT, RESULTS, Record
from lite3r_jax.service.scenes import Engine, Scenes
from lite3r_jax.viewer.access import is_loopback
from lite3r_jax.weights.load import BUNDLED

DEFAULT_OUTPUT = "lite3r_served"
"""Folder of the service's scenes unless the settings name one."""
_FIELDS = {"attention": "attention.plan", "size": "images.size", "formats": "formats"}
_FIELDS |= {"fps": "video.fps"}


def run(experiment: Experiment) -> int:
    """Serves the web page and the API until interrupted.

    Args:
        experiment: `weights` is the model, `serve.models` are others to choose from; `output` keeps
            the scenes; `host` and `port` say where.

    Returns:
        Exit code 0; SIGINT and SIGTERM end it as an exception.

    Raises:
        InputError: the service's packages are missing, the port cannot be listened on, another
            process writes into `output`, or weights or settings are wrong.
    """
    with Service(experiment) as service:
        if not is_loopback(experiment.host):
            print(
                f"--host={experiment.host}: there is no password; whoever reaches it can use it and"
                " sees all scenes",
                file=sys.stderr,
            )
        print(f"{service.url}  (stop with Ctrl-C)", flush=True)
        if experiment.open and not webbrowser.open(service.url):
            print(f"--open: no browser was found; open {service.url}", file=sys.stderr)
        service.run()
    return 0


class Service:
    """The web service, as a context manager that ends it.

    Attributes:
        url: its address.
        scenes: all scenes of the service.
    """

    def __init__(self, experiment: Experiment, engine: Callable[[Any], Engine] = Process):
        """Takes the output folder and the port; no request is answered yet.

        Args:
            experiment: see `run`.
            engine: makes what computes the scenes, from (record, folder) -> settings.

        Raises:
            InputError: see `run`.
        """
        require(experiment, "weights")
        if experiment.cameras.known:
            raise InputError(
                "config.cameras.known: is for one scene; leave it out, the service takes photos"
                " without cameras"
            )
        try:
            import python_multipart  # noqa: F401  # pyright: ignore[reportUnusedImport]
            import uvicorn

            from lite3r_jax.service.app import create_app
        except ImportError as error:
            raise InputError(
                "serve: needs starlette, uvicorn and python-multipart; install them with pip"
                f" install 'lite3r_jax[serve]' ({error})"
            ) from error
        self._bases = _bases(experiment)
        output = Path(experiment.output or DEFAULT_OUTPUT)
        with ExitStack() as stack:
            stack.enter_context(locked(output, "serve"))
            listening = stack.enter_context(_listening(experiment.host, experiment.port))
            self.scenes = Scenes(output.absolute(), engine(self.settings), experiment.serve)
            app = create_app(self.scenes, self._offer(experiment), experiment.host)
            self._stack = stack.pop_all()
        host = f"[{experiment.host}]" if ":" in experiment.host else experiment.host
        self.url = f"http://{host}:{listening.getsockname()[1]}"
        self._sockets = [listening]
        settings = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, lifespan="off",
            loop="asyncio", http="h11", ws="none", timeout_graceful_shutdown=1,
        )  # fmt: skip
        scenes = self.scenes

        class Server(uvicorn.Server):
            async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
                """Closes the scenes too, before uvicorn raises the signal that ended it again."""
                await super().shutdown(sockets)
                await asyncio.to_thread(scenes.close)

        self._server = Server(settings)
        self._thread: threading.Thread | None = None

    def settings(self, record: Record, folder: Path) -> Experiment:
        """Returns the settings that a scene is reconstructed with.

        Args:
            record: of the scene.
            folder: of the scene.

        Raises:
            InputError: the settings are wrong, of another version for instance.
        """
        asked = self._checked(record.settings)
        page = replace(asked.export.page, title=record.name)
        return replace(
            asked,
            input=str(folder / INPUT),
            output=str(folder / RESULTS),
            overwrite=True,
            quiet=True,
            export=replace(asked.export, page=page),
        )

    def run(self) -> None:
        """Answers requests until SIGINT or SIGTERM, which go on as without the service."""
        self.scenes.start()
        self._server.run(self._sockets)

    def start(self) -> None:
        """Answers requests in a thread, and returns at once; for tests and programs."""
        self._thread = threading.Thread(target=self.run, name="service", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the service; a scene that is being computed waits for the next start."""
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(10)
        self.scenes.close()
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _checked(self, asked: Mapping[str, str]) -> Experiment:
        """Returns the settings of the requested model, with the other requested settings."""
        model = asked.get("model", "")
        if model not in self._bases:
            raise InputError(f"model: {model!r} is not served any more; send it again")
        base = self._bases[model]
        values = {_FIELDS[name]: text for name, text in asked.items() if name in _FIELDS}
        if values.get("attention.plan"):
            if base.student:
                raise InputError("attention: a student has its own; leave it out")
            parse_plan(values["attention.plan"], "attention")
        by_field = {setting: name for name, setting in _FIELDS.items()}
        try:
            return changed(base, values, "")
        except InputError as error:
            message = str(error)
            for setting, name in by_field.items():
                if message.startswith(f"{setting}:"):
                    message = name + message.removeprefix(setting)
            raise InputError(message) from error

    def _offer(self, experiment: Experiment) -> Offer:
        from lite3r_jax import __version__

        return Offer(
            version=__version__,
            models=tuple(self._bases),
            plans=plan_names(),
            formats=exports.parse_formats(experiment.formats),
            options=experiment.serve,
            check=self._checked,
        )


def _bases(experiment: Experiment) -> dict[str, Experiment]:
    """Returns model -> the settings that scenes with it begin with, the first model first.

    Weights that are not here yet are fetched.

    Raises:
        InputError: there are no such weights.
    """
    refuse_chunks(experiment, "the service")
    refuse_devices(experiment, "the service", processes="leave it out; it has one process")
    limit = experiment.serve.max_photos
    frames = min(experiment.video.max_frames or limit, limit)
    first = replace(experiment, video=replace(experiment.video, max_frames=frames))
    bases = {experiment.weights: first}
    for name in filter(None, (text.strip() for text in experiment.serve.models.split(","))):
        own = settings_for(name)
        bases.setdefault(
            name,
            replace(
                first, weights=name, backbone=own.backbone, student="", attention=own.attention,
                precision=own.precision, images=own.images, cameras=own.cameras,
            ),
        )  # fmt: skip
    for name in bases:
        if name in BUNDLED and not experiment.quiet:
            print(about_bundled(name), flush=True)
    return bases


def _listening(host: str, port: int) -> socket.socket:
    """Opens a socket that listens at a host and port; a `with` closes it at its end.

    Raises:
        InputError: the port cannot be listened on.
    """
    listening = None
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(1024)
        return listening
    except (OSError, OverflowError) as error:
        if listening is not None:
            listening.close()
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"serve: cannot listen on {printable(host)} port {port} ({reason}); choose another"
            " with --port"
        ) from error
