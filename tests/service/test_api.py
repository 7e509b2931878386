"""The JSON API: what it takes, what it refuses, and what it keeps."""

import io
import json
import re
import zipfile
from contextlib import contextmanager
from dataclasses import replace

import jsonschema
import pytest
from starlette.routing import Route

from lite3r_jax.cli.lite3r import main
from lite3r_jax.errors import InputError
from lite3r_jax.service import openapi
from lite3r_jax.service.scenes import STOPPED
from tests.service.client import BOUNDARY, Client, Toy, form, photo, served


@contextmanager
def running(output, *words, **kinds):
    with served(output, *words, **kinds) as service:
        service.start()
        yield Client(service.url), service.scenes._engine, service


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """(client, engine, service), with small limits."""
    words = ("--serve.max_photos=3", "--serve.max_upload_megabytes=0.1", "--formats=ply,colmap")
    with running(tmp_path_factory.mktemp("served"), *words) as made:
        yield made


@pytest.fixture
def held(toy):
    """The toy with an engine that ends nothing until it is told to."""
    toy[1].may_end.clear()
    yield toy
    toy[1].may_end.set()
    for scene in toy[0].get("/scenes").json["scenes"]:
        toy[0].wait(scene["id"])


def check(toy, answer, schema: str) -> None:
    """Whether an answer is what the OpenAPI document says."""
    document = toy[0].get("/openapi.json").json
    jsonschema.Draft202012Validator(
        {"$ref": f"#/components/schemas/{schema}", "components": document["components"]}
    ).validate(answer.json)


def test_a_scene_waits_is_computed_and_read_back(toy):
    client, engine, _ = toy
    files = [("one.JPG", b"1"), ("two.png", b"22")]
    name = client.sent(files, name="garden", attention="sla_global(keep=0.5)", size="56")
    scene = client.wait(name)
    assert (scene["state"], scene["name"], scene["error"]) == ("done", "garden", None)
    assert [(p["name"], p["stored"], p["bytes"]) for p in scene["photos"]] == [
        ("one.JPG", "photo_0001.jpg", 1), ("two.png", "photo_0002.png", 2),
    ]  # fmt: skip
    settings = engine.asked[-1]
    assert (settings.images.size, settings.formats) == (56, "ply,colmap")
    assert settings.attention.plan == "sla_global(keep=0.5)" and settings.weights == "vggt-tiny"
    assert settings.export.page.title == "garden"
    ply, colmap = scene["files"]
    answer = client.get(ply["href"])
    assert answer.body == b"ply" * 1000 and len(answer.body) == ply["bytes"]
    assert 'filename="points.ply"' in answer.headers["Content-Disposition"]
    archive = zipfile.ZipFile(io.BytesIO(client.get(colmap["href"]).body))
    assert archive.testzip() is None
    assert archive.read("colmap/images/a.txt") == b"inside of it"
    assert client.get(f"/scenes/{name}/thumbnail").body == b"a picture"
    assert client.get(f"/scenes/{name}/files").json["files"] == scene["files"]
    assert client.get("/scenes").json["scenes"][0]["id"] == name


def test_the_description_has_every_route_and_answers_keep_to_it(toy):
    client, _, service = toy
    document = client.get("/openapi.json").json
    assert document == openapi.document(service._offer(service._bases["vggt-tiny"]))
    routes = [r for r in service._server.config.app._app.routes if isinstance(r, Route)]
    ours = {(r.path, method) for r in routes for method in r.methods - {"HEAD"}}
    methods = {"get", "post", "delete"}
    told = {(p, m.upper()) for p, calls in document["paths"].items() for m in methods & set(calls)}
    assert ours - told == {("/app.js", "GET"), ("/app.css", "GET")} and told <= ours
    for reference in re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)):
        assert reference in document["components"]["schemas"]
    for path, schema in (("/service", "Service"), ("/scenes", "Scenes"), ("/x", "Error")):
        check(toy, client.get(path), schema)
    name = client.sent()
    check(toy, client.get(f"/scenes/{name}"), "Scene")
    client.wait(name)
    check(toy, client.get(f"/scenes/{name}"), "Scene")
    check(toy, client.get(f"/scenes/{name}/files"), "Files")


@pytest.mark.parametrize(
    "fields,status,message",
    [
        ({"model": "vggt-tny"}, 400, "model 'vggt-tny' is not known; did you mean 'vggt-tiny'?"),
        ({"attention": "sla_glob"}, 400, "did you mean 'sla_global'"),
        ({"attention": "/etc/x.json"}, 400, "attention: expected a plan such as sla_global; files"),
        ({"size": "big"}, 400, "size: expected int, got 'big'"),
        ({"size": "-5"}, 400, "size: expected 0 to 1e+09, got -5"),
        ({"fps": "0"}, 400, "fps: expected frames per second above 0"),
        ({"formats": "plyy"}, 400, "formats: unknown: plyy"),
        ({"sise": "3"}, 400, "sise: there is no such field; .*did you mean 'size'?"),
        ({"name": "x" * 121}, 400, "name: longer than 120 characters"),
        ({"size": "1" * 5000}, 413, "size: longer than 4096 bytes"),
        ({"output": "/tmp"}, 400, "output: there is no such field"),
    ],
)
def test_wrong_fields_are_refused_in_one_line(toy, fields, status, message):
    before = toy[0].get("/scenes").json
    answer = toy[0].send(**fields)
    check(toy, answer, "Error")
    error = answer.json["error"]
    assert answer.status == status and "\n" not in error
    assert all(part in error for part in message.split(".*")), error
    assert toy[0].get("/scenes").json == before


A = ("a.png", photo())


@pytest.mark.parametrize(
    "files,status,message",
    [
        ([], 400, "no photos were sent"),
        ([A] * 4, 413, "more than 3 photos (serve.max_photos)"),
        ([("a.png", b"x" * 100_000)], 413, "the upload is larger than 0.1 MB"),
        ([("a.png", b"")], 400, "a.png: is empty (0 bytes)"),
        ([("a.exe", b"x")], 415, "a.exe: is neither a photo nor a video by its name"),
        ([("", b"x")], 415, "'': is neither a photo nor a video"),
        ([A, ("b.mp4", b"x")], 400, "b.mp4: a video is a scene of its own"),
    ],
)
def test_wrong_files_are_refused_and_leave_nothing(toy, files, status, message):
    client, _, service = toy
    answer = client.send(files)
    assert answer.status == status and answer.json["error"].startswith(message)
    check(toy, answer, "Error")
    assert not [p for p in service.scenes.folder.iterdir() if p.name.startswith(".upload-")]


@pytest.mark.parametrize(
    "body,kind,status",
    [
        (b"{}", "application/json", 415),
        (b"", "", 415),
        (b"", "multipart/form-data", 415),
        (b"nothing of a form", f"multipart/form-data; boundary={BOUNDARY}", 400),
        (form([A])[:-20], f"multipart/form-data; boundary={BOUNDARY}", 400),
        (form([A]), "multipart/form-data; boundary=" + "x" * 500, 400),
    ],
)
def test_what_is_no_form_is_refused(toy, body, kind, status):
    answer = toy[0]("POST", "/scenes", body, Content_Type=kind)
    assert answer.status == status
    check(toy, answer, "Error")


def test_a_size_is_counted_while_it_arrives_where_none_was_announced(toy):
    client, _, service = toy
    pieces = iter([form([A])[:200], *[b"x" * 50_000] * 4])
    kind = f"multipart/form-data; boundary={BOUNDARY}"
    answer = client("POST", "/scenes", pieces, Content_Type=kind)
    assert answer.status == 413 and "larger than 0.1 MB" in answer.json["error"]
    assert not [p for p in service.scenes.folder.iterdir() if p.name.startswith(".upload-")]


@pytest.mark.parametrize(
    "name", ["../../x.png", "/etc/x.png", "..\\x.png", "a/../../b.png", ".png.png", "x\0.png"]
)
def test_names_of_files_are_never_paths(toy, name):
    client, _, service = toy
    before = set(service.scenes.folder.parent.rglob("*"))
    scene = client.wait(client.sent([(name, b"x")]))
    new = set(service.scenes.folder.parent.rglob("*")) - before
    folder = service.scenes.folder / scene["id"]
    assert all(p.is_relative_to(folder) for p in new)
    assert [p.name for p in (folder / "input").iterdir()] == ["photo_0001.png"]
    assert scene["photos"][0]["name"].isprintable()


@pytest.mark.parametrize(
    "path",
    [
        "scene.json", "../scene.json", "..%2Fscene.json", "%2e%2e/scene.json", "ply/../../x",
        "/etc/passwd", "npz", "points.ply", "ply%00", "ply/", "..",
    ],
)  # fmt: skip
def test_only_files_of_a_scene_are_served(toy, path):
    client = toy[0]
    name = client.sent()
    client.wait(name)
    for start in (f"/scenes/{name}/files/", f"/scenes/{name}/", f"/scenes/../{name}/", "/"):
        answer = client.get(start + path)
        assert answer.status == 404, start + path
        check(toy, answer, "Error")
    for other in ("0" * 16, "..", ".upload-0", name.upper() + "x"):
        assert client.get(f"/scenes/{other}").status in (404,)


@pytest.mark.parametrize(
    "headers,status",
    [
        ({}, 200),
        ({"Host": "localhost"}, 200),
        ({"Host": "rebound.example"}, 403),
        ({"Host": ""}, 403),
        ({"Origin": "http://elsewhere.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "own"}, 200),
    ],
)
def test_host_and_origin_are_those_of_the_service(toy, headers, status):
    client = toy[0]
    headers = {k: client.url if v == "own" else v for k, v in headers.items()}
    for path in ("/", "/scenes", "/openapi.json"):
        assert client.get(path, **headers).status == status
    for method, path in (("POST", "/scenes"), ("DELETE", f"/scenes/{'0' * 16}")):
        assert (client(method, path, b"", **headers).status == 403) == (status == 403)


def test_no_answer_can_be_used_by_another_page(toy):
    client = toy[0]
    for path in ("/", "/app.js", "/scenes", "/x"):
        headers = client.get(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "Access-Control-Allow-Origin" not in headers and "server" not in headers
        assert headers["Content-Security-Policy"].startswith("default-src 'none'")
    scene = client.wait(client.sent(formats="html"))
    page = client.get(scene["files"][0]["href"])
    assert page.headers["Content-Type"].startswith("text/html")
    assert page.headers["Content-Security-Policy"].startswith("sandbox allow-scripts")


def test_waiting_and_running_scenes_are_cancelled(held):
    client, engine, _ = held
    first, second = client.sent(), client.sent()
    scene = client.until(first, lambda scene: scene["progress"])
    assert scene["progress"] | {"seconds": 0} == {
        "stage": "load photos", "done": 1, "total": 2, "unit": "photo", "seconds": 0,
        "expected": None,
    }  # fmt: skip
    assert client.get(f"/scenes/{second}").json["place"] == 1
    assert client("DELETE", f"/scenes/{first}").status == 409
    assert client("POST", f"/scenes/{second}/cancel").json["state"] == "cancelled"
    assert client("POST", f"/scenes/{first}/cancel").json["cancelling"]
    assert client.wait(first)["state"] == "cancelled"
    assert client("POST", f"/scenes/{first}/cancel").status == 409
    count = len(engine.asked)
    engine.may_end.set()
    assert client.wait(client.sent())["state"] == "done"
    assert len(engine.asked) == count + 1  # the second was never begun


def test_a_format_that_was_not_chosen_is_added_and_what_was_there_stays(held):
    client, engine, _ = held
    engine.may_end.set()
    name = client.sent(formats="npz,ply", name="garden")
    client.wait(name)
    for wrong, status in (("plyy", 400), ("ply,tum", 400), ("ply", 409)):
        assert client("POST", f"/scenes/{name}/files/{wrong}").status == status
    engine.may_end.clear()
    answer = client("POST", f"/scenes/{name}/files/colmap")
    assert answer.status == 202 and answer.json["adding"] == "colmap"
    check(held, answer, "Scene")
    client.wait(name, "running")
    assert client.get(f"/scenes/{name}/files/ply").body == b"ply" * 1000  # meanwhile
    client("POST", f"/scenes/{name}/cancel")
    scene = client.wait(name)
    assert (scene["state"], scene["adding"], len(scene["files"])) == ("done", None, 2)
    engine.may_end.set()
    client("POST", f"/scenes/{name}/files/colmap")
    scene = client.wait(name)
    assert [each["format"] for each in scene["files"]] == ["npz", "ply", "colmap"]
    assert zipfile.ZipFile(io.BytesIO(client.get(scene["files"][2]["href"]).body)).namelist()
    other = client.sent(formats="ply", name="bad")
    assert client.wait(other)["state"] == "failed"
    assert client("POST", f"/scenes/{other}/files/tum").status == 409


def test_a_format_that_cannot_be_added_leaves_the_scene_done(toy):
    client, _, service = toy
    name = client.sent(formats="npz")
    client.wait(name)
    with service.scenes._lock:
        record = service.scenes.get(name)
        service.scenes._change(replace(record, name="bad"))
    client("POST", f"/scenes/{name}/files/ply")
    scene = client.wait(name)
    assert (scene["state"], scene["error"]) == ("done", "photo_0001.png: cannot be read")
    assert [each["format"] for each in scene["files"]] == ["npz"]
    assert client.get(scene["files"][0]["href"]).body == b"npz" * 1000


def test_a_deleted_scene_leaves_nothing(toy):
    client, _, service = toy
    name = client.sent()
    client.wait(name)
    assert client("DELETE", f"/scenes/{name}").status == 204
    assert client.get(f"/scenes/{name}").status == 404
    assert client("DELETE", f"/scenes/{name}").status == 404
    assert not [path for path in service.scenes.folder.iterdir() if name in path.name]


def test_errors_of_a_scene_are_its_one_line_and_the_next_goes_on(toy, capfd):
    client = toy[0]
    bad, broken = client.sent(name="bad"), client.sent(name="broken")
    scene = client.wait(bad)
    assert (scene["state"], scene["error"]) == ("failed", "photo_0001.png: cannot be read")
    assert client.wait(broken)["error"] == "internal error: two lines"
    assert "RuntimeError: two" in capfd.readouterr().err  # the log says more
    assert client.wait(client.sent())["state"] == "done"


def test_too_many_scenes_are_asked_to_come_later(tmp_path):
    words = ("--serve.max_waiting=2", "--serve.max_scenes=4")
    with running(tmp_path / "out", *words) as (client, engine, _):
        engine.may_end.clear()
        client.wait(client.sent(), "running")
        first, _ = client.sent(), client.sent()
        answer = client.send()
        assert answer.status == 503 and int(answer.headers["Retry-After"]) > 0
        assert "serve.max_waiting" in answer.json["error"]
        client("POST", f"/scenes/{first}/cancel")
        client.sent()
        client("POST", f"/scenes/{first}/cancel")
        engine.may_end.set()
        for scene in client.get("/scenes").json["scenes"]:
            client.wait(scene["id"])
        answer = client.send()
        assert answer.status == 507 and "serve.max_scenes" in answer.json["error"]
        client("DELETE", f"/scenes/{first}")
        client.sent()


def test_a_restart_lists_earlier_scenes_and_goes_on_with_those_that_wait(tmp_path, capfd):
    out = tmp_path / "out"
    with running(out) as (client, engine, _):
        done = client.wait(client.sent(formats="ply"))
        engine.may_end.clear()
        stopped, waiting = client.sent(name="stopped"), client.sent(name="waiting")
        client.wait(stopped, "running")
    killed = json.loads((out / waiting / "scene.json").read_text()) | {"state": "running"}
    (out / ("k" * 16).replace("k", "0")).mkdir()
    for name in ("1" * 16, "2" * 16):
        (out / name / "input").mkdir(parents=True)
        (out / name / "scene.json").write_text(json.dumps(killed | {"id": "1" * 16}))
    (out / ".upload-left").mkdir()
    with running(out) as (client, engine, _):
        assert client.get(f"/scenes/{done['id']}").json == done
        assert client.get(done["files"][0]["href"]).body == b"ply" * 1000
        assert client.wait(stopped)["state"] == client.wait(waiting)["state"] == "done"
        assert [settings.export.page.title for settings in engine.asked] == ["stopped", "waiting"]
        assert client.get(f"/scenes/{'1' * 16}").json["error"] == STOPPED
        assert client.get(f"/scenes/{'2' * 16}").status == 404
        assert not (out / ".upload-left").exists()
    errors = capfd.readouterr().err.splitlines()
    assert [line.partition("scene.json")[2][:30] for line in errors if "left out" in line] == [
        ": cannot be read (No such file", ": is no record of a scene (a v",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", b"[" * 100_000, b'{"files": [1]}', b'{"files": [{"stored": "../x"}]}'],
)
def test_a_record_that_is_none_is_left_out(tmp_path, body, capfd):
    (tmp_path / ("0" * 16)).mkdir()
    (tmp_path / ("0" * 16) / "scene.json").write_bytes(body)
    with served(tmp_path) as service:
        assert service.scenes.all() == []
    assert capfd.readouterr().err.count("left out") == 1


def test_one_service_at_a_time_writes_into_a_folder(toy, tmp_path, capfd):
    _, _, service = toy
    assert main(["serve", "--port=0", f"--output={service.scenes.folder}"]) == 2
    error = capfd.readouterr().err
    assert "another run is writing there (serve, process" in error and error.count("\n") == 1
    port = service.url.rpartition(":")[2]
    assert main(["serve", f"--port={port}", f"--output={tmp_path / 'other'}"]) == 2
    assert f"cannot listen on 127.0.0.1 port {port} (" in capfd.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    "words,message",
    [
        (["--serve.models=vggt-tny"], "vggt-tny: no such directory"),
        (["--cameras.known=x"], "config.cameras.known: is for one scene"),
        (["--serve.max_photos=0"], "expected 1 to"),
        (["--formats=plyy"], "did you mean 'ply'"),
    ],
)
def test_settings_that_cannot_be_are_refused_at_the_start(tmp_path, words, message):
    with pytest.raises(InputError, match=re.escape(message)):
        served(tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()


def test_several_models_are_offered(tmp_path, tiny_da3_dir):
    with running(tmp_path, f"--models={tiny_da3_dir}") as (client, engine, _):
        assert client.get("/service").json["models"] == ["vggt-tiny", str(tiny_da3_dir)]
        client.wait(client.sent(model=str(tiny_da3_dir)))
        assert (engine.asked[-1].weights, engine.asked[-1].backbone) == (str(tiny_da3_dir), "da3")


def test_the_packages_of_the_service_are_asked_for_by_name(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "uvicorn", None)
    with pytest.raises(InputError, match=re.escape("pip install 'lite3r_jax[serve]'")):
        served(tmp_path, engine=Toy)
