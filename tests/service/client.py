"""A client of the service, photos to send, and an engine that computes nothing."""

import http.client
import io
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from lite3r_jax.cli.lite3r import settings_of
from lite3r_jax.errors import InputError
from lite3r_jax.experiment import Experiment
from lite3r_jax.exports import FORMATS
from lite3r_jax.runs.serve import Service
from lite3r_jax.service.record import RESULTS, Progress
from lite3r_jax.service.refusals import Cancelled
from lite3r_jax.service.scenes import Made

BOUNDARY = "a-line-between"


def photo(seed: int = 0, size: tuple[int, int] = (28, 28)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def form(files, **fields) -> bytes:
    """The body of multipart/form-data; files: (name, content)."""
    parts = [
        f'Content-Disposition: form-data; name="{name}"\r\n\r\n{text}'.encode()
        for name, text in fields.items()
    ]
    parts += [
        f'Content-Disposition: form-data; name="photos"; filename="{name}"\r\n'
        f"Content-Type: application/octet-stream\r\n\r\n".encode()
        + content
        for name, content in files
    ]
    lines = b"".join(b"--" + BOUNDARY.encode() + b"\r\n" + part + b"\r\n" for part in parts)
    return lines + b"--" + BOUNDARY.encode() + b"--\r\n"


TWO = (("a.png", photo(0)), ("b.png", photo(1)))


@dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)


class Client:
    """Requests to one service."""

    def __init__(self, url: str):
        self.url = url
        self._address = urlsplit(url)

    def __call__(self, method: str, path: str, body: bytes | None = None, **headers) -> Answer:
        connection = http.client.HTTPConnection(self._address.hostname, self._address.port, 60)
        try:
            headers = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers, answer.read())
        finally:
            connection.close()

    def get(self, path: str, **headers) -> Answer:
        return self("GET", path, **headers)

    def send(self, files=TWO, **fields) -> Answer:
        kind = f"multipart/form-data; boundary={BOUNDARY}"
        return self("POST", "/scenes", form(files, **fields), Content_Type=kind)

    def sent(self, *args, **fields) -> str:
        answer = self.send(*args, **fields)
        assert answer.status == 202, answer.body
        assert answer.headers["Location"] == f"/scenes/{answer.json['id']}"
        return answer.json["id"]

    def until(self, name: str, condition: Callable[[dict], object]) -> dict:
        deadline = time.monotonic() + 300
        while True:
            scene = self.get(f"/scenes/{name}").json
            if condition(scene):
                return scene
            assert time.monotonic() < deadline, scene
            time.sleep(0.02)

    def wait(self, name: str, *states: str) -> dict:
        ends = states or ("done", "failed", "cancelled")
        return self.until(name, lambda scene: scene["state"] in ends)


class Toy:
    """An engine that writes what it is told, when it may."""

    def __init__(self, settings):
        self.settings = settings
        self.may_end = threading.Event()
        self.may_end.set()
        self.asked: list[Experiment] = []
        self.closed = False

    def compute(self, record, folder, report, cancelled):
        settings = self.settings(record, folder)
        self.asked.append(settings)
        report(Progress("load photos", 1, 2, "photo"))
        while not self.may_end.wait(0.01):
            if cancelled.is_set() or self.closed:
                raise Cancelled
        if "bad" in record.name:
            raise InputError("photo_0001.png: cannot be read")
        if "broken" in record.name:
            raise RuntimeError("two\nlines")
        outputs = dict(record.outputs)
        for name in (record.adding or settings.formats).split(","):
            path = folder / RESULTS / FORMATS[name].name
            path.parent.mkdir(exist_ok=True)
            if "." in path.name:
                path.write_bytes(name.encode() * 1000)
            else:
                (path / "images").mkdir(parents=True)
                (path / "images" / "a.txt").write_text("inside of it")
            outputs[name] = 1000 * len(name)
        (folder / "thumbnail.jpg").write_bytes(b"a picture")
        return Made(outputs, {"run": 0.5}, len(record.files))

    def close(self):
        self.closed = True


def served(output, *words: str, engine=Toy) -> Service:
    """A service on a free port, not yet started."""
    settings = settings_of("serve", ["--port=0", f"--output={output}", "--quiet", *words])
    assert settings is not None
    return Service(settings, engine)
