"""Every reader of something from outside, with good files to be damaged and what must hold."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lite3r_jax.attention.presets import parse_plan
from lite3r_jax.cli.lite3r import settings_of
from lite3r_jax.data.cam_file import read_cam
from lite3r_jax.data.captures import Capture
from lite3r_jax.data.images import read_image
from lite3r_jax.data.known_cameras import read_known_cameras
from lite3r_jax.data.pair_file import read_pairs
from lite3r_jax.data.pfm import read_pfm
from lite3r_jax.data.pipeline import parse_buckets
from lite3r_jax.data.registry import parse_sources
from lite3r_jax.data.video import VideoOptions, read_video
from lite3r_jax.deploy.manifest import DEPLOYED_FORMAT, Deployment, read_deployment
from lite3r_jax.distillation.checkpoint import StudentManifest, read_student, write_student
from lite3r_jax.evaluation.options import EvaluateOptions
from lite3r_jax.evaluation.record import Record
from lite3r_jax.evaluation.report_file import read_report
from lite3r_jax.evaluation.results import Results
from lite3r_jax.evaluation.score import ScoreOptions
from lite3r_jax.evaluation.thumbnails import Thumbnails, pack, unpack
from lite3r_jax.evaluation.variants import parse_variants
from lite3r_jax.exports.masks import read_mask
from lite3r_jax.exports.npz import read_npz, write_npz
from lite3r_jax.geometry import Sim3
from lite3r_jax.kernels import proofs
from lite3r_jax.kernels.sla import launches
from lite3r_jax.long_video.chunks import Chunk
from lite3r_jax.long_video.joining import join
from lite3r_jax.long_video.joint import Joint
from lite3r_jax.long_video.loops import Candidate, Loop
from lite3r_jax.long_video.store import Store
from lite3r_jax.refine.kept import Kept
from lite3r_jax.runs.recipes import load_recipe
from lite3r_jax.scene import PhotoLenses, PredictedGeometry, TrackedPoints
from lite3r_jax.service.record import Record as SceneRecord
from lite3r_jax.service.record import read_record, write_record
from lite3r_jax.service.uploads import UploadedFile
from lite3r_jax.training import portable, run_dir
from lite3r_jax.training.manifest import damage as damaged_checkpoint
from lite3r_jax.training.manifest import write_manifest
from lite3r_jax.weights import strict_json
from lite3r_jax.weights.load import resolve
from lite3r_jax.weights.manifest import Origin, read_manifest
from lite3r_jax.weights.safetensors_file import TensorSpec, open_safetensors
from lite3r_jax.weights.safetensors_writer import FileRecord, SafetensorsWriter
from lite3r_jax.weights.sealed_json import seal
from tests.data.test_heif import HEIC
from tests.data.test_video import record as record_video
from tests.data.world import cam_text, depth_tail, pair_text, pfm_bytes, scene_of, views
from tests.fuzz.mutation import Mutation, any_bytes, any_json, any_text, changed
from tests.service.client import form
from tests.service.test_uploads import receive


def anything(value: Any, wanted: Any) -> bool:
    """Whatever is read is as good as another."""
    return True


def equal(value: Any, wanted: Any) -> bool:
    """Files with checksums are what they were, or refused."""
    if isinstance(wanted, dict):
        return value.keys() == wanted.keys() and all(equal(value[k], wanted[k]) for k in wanted)
    return np.array_equal(value, wanted) if isinstance(wanted, np.ndarray) else value == wanted


@dataclass(frozen=True)
class Reader:
    """What reads something from outside.

    Attributes:
        name: in tables.
        make: writes good files into an empty folder.
        files: their names, one of which is damaged at a time.
        read: reads what is in the folder.
        mutate: makes a damaged copy.
        valid: (what was read, what the good files give or None) -> whether it may be so.
        same: whether `valid` gets what the good files give.
        decoded: bytes that what is read may take, beyond the bound for all.
        slow: whether it takes seconds to begin.
        most: bytes of the large files; a word of a command line has 128 KiB at most.
    """

    name: str
    make: Callable[[Path], Any]
    files: tuple[str, ...]
    read: Callable[[Path], Any]
    mutate: Mutation = any_bytes
    valid: Callable[[Any, Any], bool] = anything
    same: bool = False
    decoded: int = 0
    slow: bool = False
    most: int = 5_000_000


READERS: dict[str, Reader] = {}


def add(name: str, make: Any, files: str, read: Callable[[Path], Any], **more: Any) -> None:
    """Put a reader into `READERS`; files with commas between."""
    READERS[name] = Reader(name, make, tuple(files.split(",")), read, **more)


# -- photos and videos -----------------------------------------------------------------------------

PIXELS = 1_000_000


def _picture() -> np.ndarray:
    y, x = np.mgrid[0:30, 0:40]
    return np.stack([4 * x, 6 * y, 3 * (x + y)], -1).astype(np.uint8)


def _photo(name: str, suffix: str, array: np.ndarray, **more: Any) -> None:
    def make(folder: Path) -> None:
        from PIL import Image

        if suffix == ".heic":
            (folder / "a.heic").write_bytes(HEIC.read_bytes())
        else:
            Image.fromarray(array).save(folder / f"a{suffix}")

    def read(folder: Path) -> np.ndarray:
        return np.asarray(read_image(folder / f"a{suffix}", "a", PIXELS))

    def valid(value: Any, wanted: Any) -> bool:
        ok = value.dtype == np.uint8 and value.shape[2:] == (3,)
        return ok and (wanted is None or np.array_equal(value, wanted))

    add(name, make, f"a{suffix}", read, valid=valid, **more)


_photo("JPEG", ".jpg", _picture())
_photo("PNG", ".png", _picture(), same=True)
_photo("PNG, 16 bits", ".png", _picture()[..., 0].astype(np.uint16) * 257, same=True)
_photo("WebP", ".webp", _picture())
_photo("TIFF", ".tif", _picture())
_photo("BMP", ".bmp", _picture())
_photo("GIF", ".gif", _picture())
_photo("PPM", ".ppm", _picture())
_photo("AVIF", ".avif", _picture())
_photo("HEIC", ".heic", _picture())


def _mask(folder: Path) -> None:
    from PIL import Image

    Image.fromarray((_picture()[..., 0] > 80).astype(np.uint8) * 255).save(folder / "a.png")


add(
    "mask of a photo",
    _mask,
    "a.png",
    lambda folder: read_mask(folder / "a.png", (40, 30), "a.jpg"),
    valid=lambda value, wanted: value.dtype == bool and value.shape == (30, 40),
)
add(
    "MP4 video",
    lambda folder: record_video(folder / "a.mp4", frames=6),
    "a.mp4",
    lambda folder: read_video(str(folder / "a.mp4"), VideoOptions(), max_pixels=PIXELS),
    slow=True,
)


# -- cameras, depth, scenes ------------------------------------------------------------------------

SIZE = (28, 42)


def _scene() -> Any:
    return scene_of(views(2, SIZE))


CHUNK = Chunk(0, 0, 2, 0, 2)
LOOP = Candidate(0, 3, 1, 60, 0.9)


def _chunk(folder: Path) -> None:
    where = Sim3(np.float64(2), np.eye(3), np.ones(3))
    store = Store(folder)
    store.write(CHUNK, _scene(), np.ones((2, 8)), Joint(where, 0.9, 0.01, 0.5))
    store.write_loop(Loop(LOOP, where, 0.01, 0.5))


def _use_chunk(made: Any, _: Any) -> bool:
    """It can be joined."""
    joints = [None, made.joint]
    join([CHUNK, dataclasses.replace(CHUNK, index=1)], joints, [], [made.centers] * 2, [1.0, 1.0])
    return made.extrinsics.shape == (2, 3, 4)


add("chunk of a long video", _chunk, "chunks/000000/chunk.json",
    lambda folder: Store(folder).views(CHUNK), mutate=any_json, valid=_use_chunk)  # fmt: skip
add("views of a chunk", _chunk, "chunks/000000/views.npz",
    lambda folder: Store(folder).views(CHUNK), valid=_use_chunk)  # fmt: skip
add("loop of a long video", _chunk, "chunks/loops/000000-000003.json",
    lambda folder: Store(folder).loop(LOOP), mutate=any_json)  # fmt: skip


def _arrays(scene: Any) -> dict[str, Any]:
    return {f.name: getattr(scene, f.name) for f in dataclasses.fields(scene)}


def _matches(folder: Path) -> None:
    made = {"corners": np.ones((2, 2)), "track": np.arange(2), "partner": np.zeros(2, np.int64)}
    Kept(folder / "matches", "key")(0, 1, lambda: made)


def _read_matches(folder: Path) -> Any:
    def nothing() -> Any:
        raise AssertionError("what was kept is not read")

    return dict(Kept(folder / "matches", "key")(0, 1, nothing))


def _cameras_npz(folder: Path) -> None:
    made = views(2, SIZE)
    np.savez(
        folder / "a.npz",
        extrinsics=np.stack([view.extrinsics for view in made]),
        intrinsics=np.stack([view.intrinsics for view in made]),
        names=np.array(["a.png", "b.png"]),
        sizes=np.array([[42, 28]] * 2),
    )


def _colmap(form: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        from tests.data.test_captures import reconstruct

        made = reconstruct(views(2, SIZE))
        (made.write_binary if form == "bin" else made.write_text)(folder)

    return make


def _transforms(folder: Path) -> None:
    from tests.data.test_known_cameras import write_transforms

    write_transforms(folder / "transforms.json")


def cameras_are_valid(value: Any, wanted: Any) -> bool:
    """Rotations, finite numbers, and names that stay inside."""
    for camera in value.cameras:
        rotation = camera.extrinsics[:, :3]
        ok = (
            np.isfinite(camera.extrinsics).all()
            and np.abs(rotation @ rotation.T - np.eye(3)).max() < 0.1
        )
        if not ok or ".." in camera.name.split("/") or camera.name.startswith("/"):
            return False
    return bool(value.cameras)


def _capture(folder: Path) -> None:
    from PIL import Image

    made = views(2, SIZE)
    (folder / "images").mkdir()
    (folder / "depth").mkdir()
    frames = []
    for n, view in enumerate(made):
        Image.fromarray(view.rgb).save(folder / "images" / f"{n}.png")
        depth = np.rint(view.depth * 1000).astype(np.uint16)
        Image.fromarray(depth).save(folder / "depth" / f"{n}.png")
        pose = np.linalg.inv(np.vstack([view.extrinsics, [0, 0, 0, 1]])) @ np.diag([1, -1, -1, 1.0])
        frames.append(
            {"file_path": f"images/{n}.png", "depth_file_path": f"depth/{n}.png",
             "transform_matrix": pose.tolist()}
        )  # fmt: skip
    k = made[0].intrinsics
    lens = {"w": SIZE[1], "h": SIZE[0], "fl_x": k[0, 0], "fl_y": k[1, 1], "cx": k[0, 2] + 0.5,
            "cy": k[1, 2] + 0.5}  # fmt: skip
    text = {**lens, "depth_unit_scale_factor": 1e-3, "frames": frames}
    (folder / "transforms.json").write_text(json.dumps(text))


def _read_capture(folder: Path) -> Any:
    capture = Capture(folder)
    (name,) = capture.scenes
    return capture.read(name, capture.frames(name), SIZE)


add(
    "predictions.npz",
    lambda folder: write_npz(_scene(), folder / "a.npz"),
    "a.npz",
    lambda folder: _arrays(read_npz(folder / "a.npz")),
    valid=lambda value, wanted: wanted is None or equal(value, wanted),
    same=True,
)


def _refined_scene() -> Any:
    """Two views with a point that both see, the prediction beside them, and their lenses."""
    scene = _scene()
    predicted = PredictedGeometry(scene.extrinsics, scene.intrinsics, scene.depth)
    tracks = TrackedPoints(
        points=np.ones((1, 3), np.float32),
        colors=np.full((1, 3), 7, np.uint8),
        errors=np.ones(1, np.float32),
        track=np.zeros(2, np.int32),
        view=np.arange(2, dtype=np.int32),
        pixel=np.full((2, 2), 3, np.float32),
    )
    lenses = PhotoLenses(scene.source_intrinsics, np.full(2, -0.1))
    return dataclasses.replace(scene, predicted=predicted, tracks=tracks, lenses=lenses)


def _refined_arrays(scene: Any) -> dict[str, Any]:
    parts = {name: vars(getattr(scene, name)) for name in ("predicted", "tracks", "lenses")}
    return _arrays(scene) | parts


add(
    "predictions.npz of a refined scene",
    lambda folder: write_npz(_refined_scene(), folder / "a.npz"),
    "a.npz",
    lambda folder: _refined_arrays(read_npz(folder / "a.npz")),
    valid=lambda value, wanted: wanted is None or equal(value, wanted),
    same=True,
)
add("matches of a refinement", _matches, "matches/key/0-000001.npz", _read_matches, same=True,
    valid=lambda value, wanted: wanted is None or equal(value, wanted))  # fmt: skip
add("cameras as NPZ", _cameras_npz, "a.npz", lambda folder: read_known_cameras(folder / "a.npz"),
    valid=cameras_are_valid)  # fmt: skip
add("transforms.json", _transforms, "transforms.json",
    lambda folder: read_known_cameras(folder / "transforms.json"), mutate=any_json,
    valid=cameras_are_valid)  # fmt: skip
for _form in ("bin", "txt"):
    add(f"COLMAP model ({_form})", _colmap(_form), f"cameras.{_form},images.{_form}",
        read_known_cameras, valid=cameras_are_valid, slow=True)  # fmt: skip
add("capture with depth", _capture, "transforms.json,images/0.png,depth/1.png", _read_capture,
    mutate=lambda data, rng: (any_json if data[:1] == b"{" else any_bytes)(data, rng))  # fmt: skip
_VIEW = views(1, SIZE)[0]
add("camera of BlendedMVS",
    lambda folder: (folder / "a.txt").write_text(cam_text(_VIEW, depth_tail(_VIEW.depth))),
    "a.txt", lambda folder: read_cam(folder / "a.txt"),
    valid=lambda cam, _: np.isfinite(cam.extrinsics).all() and cam.intrinsics[0, 0] > 0,
    )  # fmt: skip
add("pair.txt", lambda folder: (folder / "a.txt").write_text(pair_text(5, 3)), "a.txt",
    lambda folder: read_pairs(folder / "a.txt"))  # fmt: skip
add("PFM", lambda folder: (folder / "a.pfm").write_bytes(pfm_bytes(_VIEW.depth)), "a.pfm",
    lambda folder: read_pfm(folder / "a.pfm"),
    valid=lambda depth, _: np.isfinite(depth).all())  # fmt: skip


# -- weights, students, deployments, trainings -----------------------------------------------------

TENSORS = {"a/b": np.arange(12, dtype=np.float32).reshape(3, 4), "c": np.ones(2, np.float32)}


def _write_tensors(path: Path) -> FileRecord:
    specs = {name: TensorSpec(x.shape, "F32") for name, x in TENSORS.items()}
    with SafetensorsWriter(path, specs) as writer:
        for name, x in TENSORS.items():
            writer.write(name, x)
    assert writer.record is not None
    return writer.record


def _read_tensors(path: Path) -> Any:
    source = open_safetensors(path)
    try:
        return {name: source.read(name) for name in source.specs}
    finally:
        source.close()


def _shards(folder: Path) -> None:
    for n, (name, x) in enumerate(TENSORS.items()):
        with SafetensorsWriter(
            folder / f"{n}.safetensors", {name: TensorSpec(x.shape, "F32")}
        ) as w:
            w.write(name, x)
    weight_map = {name: f"{n}.safetensors" for n, name in enumerate(TENSORS)}
    text = json.dumps({"metadata": {"total_size": 56}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(text)


def resealed(data: bytes, rng: Any) -> bytes:
    """A manifest with something changed and the SHA-256 of that, or simply damaged."""
    if rng.random() < 0.3:
        return any_bytes(data, rng)
    body = json.loads(data)
    form = body.pop("format")
    del body["sha256"]
    value = changed(body, rng)
    return strict_json.dump(seal(form, value)) if isinstance(value, dict) else any_json(data, rng)


def _weights(folder: Path) -> None:
    source = resolve("vggt-tiny")[0]
    (folder / "manifest.json").write_bytes((source / "manifest.json").read_bytes())


def _deployment(folder: Path) -> None:
    record = FileRecord(3, "0" * 64)
    plan = parse_plan("sla_global(block=4)")
    made = Deployment(
        "vggt", ("camera",), plan, 0, "fp8_dynamic", "default", (), "bfloat16", Origin(),
        {"config.json": "0" * 64}, None, {"aggregator": 4}, (),
        {"config.json": record, "aggregator.safetensors": record}, "test",
    )  # fmt: skip
    (folder / "manifest.json").write_bytes(strict_json.dump(made.to_json()))
    assert json.loads((folder / "manifest.json").read_text())["format"] == DEPLOYED_FORMAT


def _student(folder: Path) -> None:
    plan = parse_plan("sla_global(block=4)")
    manifest = StudentManifest(
        "vggt", ("camera",), plan, "strategy", 0, "none", {"config.json": "0" * 64}
    )
    write_student(folder / "student", manifest, TENSORS)


def _state(folder: Path) -> None:
    specs = {f"params/{name}": TensorSpec(x.shape, "F32") for name, x in TENSORS.items()}
    with SafetensorsWriter(folder / portable.ARRAYS, specs) as writer:
        for name, x in TENSORS.items():
            writer.write(f"params/{name}", x)
    assert writer.record is not None
    body = {"format": portable._FORMAT, "step": 6, "views": 192, "parts": [{"steps": [0, 6]}],
            "arrays": dataclasses.asdict(writer.record)}  # fmt: skip
    whole = {**body, "sha256": portable._digest(body)}
    (folder / portable.RECORD).write_bytes(strict_json.dump(whole))


def _state_resealed(data: bytes, rng: Any) -> bytes:
    if rng.random() < 0.3 or data[:1] != b"{":
        return any_bytes(data, rng)
    body = json.loads(data)
    del body["sha256"]
    value = changed(body, rng)
    value = value if isinstance(value, dict) else body
    return strict_json.dump({**value, "sha256": portable._digest(value)})


def _checkpoint(folder: Path) -> None:
    (folder / "state").mkdir()
    (folder / "state" / "a").write_bytes(b"a" * 100)
    (folder / "b").write_bytes(b"b" * 10)
    write_manifest(folder)


def _check_checkpoint(folder: Path) -> tuple[str | None, list[bytes]]:
    reason = damaged_checkpoint(folder)
    return reason, [(folder / name).read_bytes() for name in ("state/a", "b")]


def _damage_is_noticed(value: Any, wanted: Any) -> bool:
    reason, content = value
    return content == wanted[1] if reason is None else "\n" not in reason


def _log(folder: Path) -> None:
    lines = [json.dumps({"step": n, "loss": 1 / n}) for n in range(1, 9)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def _read_log(folder: Path) -> bytes:
    run_dir.truncate(folder / "metrics.jsonl", 4)
    return (folder / "metrics.jsonl").read_bytes()


def _torch(folder: Path) -> None:
    import torch

    torch.save({name: torch.from_numpy(x) for name, x in TENSORS.items()}, folder / "a.pt")


def _read_torch(folder: Path) -> Any:
    from tools.convert_torch_weights.torch_file import TorchFile

    file = TorchFile(folder / "a.pt")
    return {name: file.read(name).copy() for name in file.specs}


SETTINGS = {"weights": "w", "train": {"seed": 0, "rate": 1e-3}, "names": ["a", "b"]}


def _config(folder: Path) -> None:
    run_dir.claim(folder, SETTINGS)


add("safetensors", lambda folder: _write_tensors(folder / "a.safetensors"), "a.safetensors",
    lambda folder: _read_tensors(folder / "a.safetensors"))  # fmt: skip
add("safetensors in shards", _shards, "model.safetensors.index.json,0.safetensors",
    lambda folder: _read_tensors(folder / "model.safetensors.index.json"),
    mutate=lambda data, rng: (any_json if data[:1] == b"{" else any_bytes)(data, rng))  # fmt: skip
add("manifest of weights", _weights, "manifest.json", read_manifest, mutate=resealed,
    valid=lambda manifest, _: bool(manifest.report()))  # fmt: skip
add("manifest of a deployed model", _deployment, "manifest.json", read_deployment, mutate=resealed,
    valid=lambda manifest, _: bool(manifest.report()))  # fmt: skip
add("student", _student, "student/manifest.json,student/student.safetensors",
    lambda folder: read_student(folder / "student"),
    mutate=lambda data, rng: (resealed if data[:1] == b"{" else any_bytes)(data, rng))  # fmt: skip
add("state of a training", _state, f"{portable.RECORD},{portable.ARRAYS}", portable.read_portable,
    mutate=_state_resealed)  # fmt: skip
add("checkpoint", _checkpoint, "manifest.json,state/a,b", _check_checkpoint,
    mutate=lambda data, rng: (resealed if data[:1] == b"{" else any_bytes)(data, rng),
    valid=_damage_is_noticed, same=True)  # fmt: skip
add("config.json of a run", _config, "config.json",
    lambda folder: run_dir.claim(folder, SETTINGS), mutate=any_json)  # fmt: skip
add("metrics.jsonl", _log, "metrics.jsonl", _read_log)
add("PyTorch checkpoint", _torch, "a.pt", _read_torch, valid=equal, same=True, slow=True)


# -- results ---------------------------------------------------------------------------------------


def _report(folder: Path) -> None:
    number = {"value": 0.5, "low": 0.4, "high": None, "missing": {"no camera": 2}}
    entry = {
        "variant": "dense-float32", "protocol": "synthetic:test", "views": 2, "samples": 3,
        "size": {"height": 28, "width": 42}, "metrics": {"abs_rel": number},
        "failures": [{"scene": "s3", "frames": [1, 2], "reason": "not read"}],
    }  # fmt: skip
    options = {"pictures": 1, "score": dataclasses.asdict(ScoreOptions())}
    body = {"settings": {"backbone": "vggt", "evaluate": options}, "results": [entry, entry]}
    (folder / "report.json").write_bytes(strict_json.dump(body))


def _use_report(report: Any, _: Any) -> bool:
    """Nothing that is made of it fails."""
    from lite3r_jax.evaluation.page import charts, quality
    from lite3r_jax.html_report.chart import svg

    for chart in charts(report["results"]):
        svg(chart)
    return bool(quality(report))


def _record(folder: Path) -> None:
    record = Record("s", (0, 1), {"abs_rel": 0.5}, {"rotation_deg": (1.0, None)}, ((1.0,) * 12,))
    (folder / "a.json").write_bytes(strict_json.dump(record.to_json()))


def _read_record(folder: Path) -> Record:
    return Record.from_json(strict_json.read_object(folder / "a.json"), str(folder / "a.json"))


def _thumbnails(folder: Path) -> None:
    made = views(2, SIZE)
    shown = Thumbnails(
        np.arange(2), np.stack([view.rgb for view in made]), np.stack([v.depth for v in made]),
        np.stack([v.extrinsics for v in made]).astype(np.float32),
        np.stack([v.intrinsics for v in made]).astype(np.float32),
    )  # fmt: skip
    (folder / "a.npz").write_bytes(pack(shown))


def _results(folder: Path) -> None:
    Results(folder, {"backbone": "vggt", "evaluate": {"size": ""}})


def _launches(folder: Path) -> None:
    row = launches.Row("NVIDIA H200", "sla_forward", "half", 64, 128, 64, 4, 3, 100, 0, 1000, 2.5)
    launches.write(folder / "a.json", [row, row], "in a test")


def _proof(folder: Path) -> None:
    names = "sla", "triton", "NVIDIA H200", 9.0, "0.10.2", "580.1", "0.1", "0" * 64, "2026-11-30"
    result = proofs.Result("a", "bfloat16", "passed")
    proofs.write_record(folder / "a.json", [proofs.Proof(*names, "device-check", (result,))])


add("table of kernel launches", _launches, "a.json",
    lambda folder: launches.read(folder / "a.json"), mutate=any_json)  # fmt: skip
add("proof of a kernel", _proof, "a.json", lambda folder: proofs.read_record(folder / "a.json"),
    mutate=any_json)  # fmt: skip
add("report.json of an evaluation", _report, "report.json",
    lambda folder: read_report(folder / "report.json", "bench.quality"), mutate=any_json,
    valid=_use_report)  # fmt: skip
add("record of a sample", _record, "a.json", _read_record, mutate=any_json,
    valid=lambda record, _: bool(record.to_json()))  # fmt: skip
add("pictures of a sample", _thumbnails, "a.npz", lambda folder: vars(unpack(folder / "a.npz")),
    valid=equal, same=True)  # fmt: skip
add("settings of an evaluation", _results, "settings.json",
    lambda folder: Results(folder, {"backbone": "vggt", "evaluate": {"size": ""}}),
    mutate=any_json)  # fmt: skip


# -- the service -----------------------------------------------------------------------------------


def _receive(folder: Path) -> dict[str, str]:
    (folder / "input").mkdir(exist_ok=True)
    for file in (folder / "input").iterdir():
        file.unlink()
    upload = receive([(folder / "body").read_bytes()], folder / "input")
    assert {file.name for file in (folder / "input").iterdir()} == {f.stored for f in upload.files}
    return upload.fields


def _scene_record(folder: Path) -> None:
    files = (UploadedFile("photo_0001.jpg", "a.jpg", 3),)
    write_record(SceneRecord("0" * 16, "a", "2026", {"model": "w"}, files), folder / ("0" * 16))


add("upload of photos", lambda folder: (folder / "body").write_bytes(
    form([("a.jpg", b"123"), ("b.png", bytes(range(256)))], name="x", size="28")),
    "body", _receive)  # fmt: skip
add("record of a scene", _scene_record, f"{'0' * 16}/scene.json",
    lambda folder: read_record(folder / ("0" * 16)), mutate=any_json,
    valid=lambda record, _: bool(json.dumps(dataclasses.asdict(record), allow_nan=False)),
    )  # fmt: skip


# -- texts of settings -----------------------------------------------------------------------------


def _text(name: str, good: str, read: Callable[[str], Any]) -> None:
    add(
        name,
        lambda folder: (folder / "text").write_text(good),
        "text",
        lambda folder: read((folder / "text").read_bytes().decode("utf-8", "surrogateescape")),
        mutate=any_text,
        most=100_000,
    )


_text("text of a plan", "sla_global(keep=0.1, block=4, layers=[0-3])+sla_frame", parse_plan)
_text("variants", "dense-float32,sla_global-bfloat16,student-fp8_dynamic",
      lambda text: parse_variants(text, "student"))  # fmt: skip
_text("sources of data", "synthetic*2,blendedmvs:/data/b*3,capture:/c@depth=/d", parse_sources)
_text("buckets", "8x2x518x518, 4x4x392x518*2", parse_buckets)
_text("protocols", "synthetic:test@2,capture:/c@depth=/d",
      lambda text: EvaluateOptions(protocols=text).tasks())  # fmt: skip
_text("name of a recipe", "vggt:tiny", load_recipe)
_text("command line", "--weights w --bench.views 2,8 --size=518x518 --bench.seconds 1e3",
      lambda text: settings_of("bench", ["--recipe", "vggt", *text.split(" ")]))  # fmt: skip
