"""The page in a browser, and many programs at once."""

import base64
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from lite3r_jax.exports.npz import read_npz
from lite3r_jax.runs.serve_engine import Process
from tests.chromium import Chromium
from tests.service.client import Client, Toy, photo, served

pytestmark = pytest.mark.slow


class Echo(Toy):
    """Gives every scene back what it sent."""

    def compute(self, record, folder, report, cancelled):
        made = super().compute(record, folder, report, cancelled)
        sent = (folder / "input" / record.files[0].stored).read_bytes()
        (folder / "results" / "points.ply").write_bytes(sent)
        return made


def together(work, count: int = 200) -> list:
    """What `work(i)` gives in so many threads, which begin at once."""
    ready = threading.Barrier(count)

    def one(i: int):
        ready.wait()
        return work(i)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def test_200_programs_get_each_its_own(tmp_path):
    words = ("--serve.max_waiting=200", "--formats=ply")
    with served(tmp_path, *words, engine=Echo) as service:
        service.start()
        client = Client(service.url)

        def work(i: int) -> bool:
            mine = str(i).encode() * 20_000
            scene = client.wait(client.sent([("a.png", mine)], name=str(i)))
            assert scene["name"] == str(i)
            return client.get(scene["files"][0]["href"]).body == mine

        assert all(together(work))
        assert client.get("/service").json["now"] == {"scenes": 200, "waiting": 0, "arriving": 0}


def test_of_200_programs_those_that_must_wait_are_told(tmp_path):
    with served(tmp_path, "--serve.max_waiting=20") as service:
        service.start()
        client = Client(service.url)
        service.scenes._engine.may_end.clear()
        answers = together(lambda i: (client.send().status, client.get("/scenes").status))
        sent = [post for post, _ in answers]
        assert set(sent) == {202, 503} and 20 <= sent.count(202) <= 21
        assert {get for _, get in answers} == {200}
        assert len(service.scenes.all()) == sent.count(202)
        service.scenes._engine.may_end.set()


DROP = """(async () => {
  const transfer = new DataTransfer();
  for (const [name, text] of %s) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    transfer.items.add(new File([bytes], name, { type: "image/png" }));
  }
  document.getElementById("drop").dispatchEvent(
    new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
})()"""


def test_two_photos_are_dropped_looked_at_turned_and_downloaded(tmp_path):
    files = [[f"p{i}.png", base64.b64encode(photo(i, (112, 112))).decode()] for i in (10, 9)]
    words = ("--formats=npz,html",)
    with served(tmp_path / "out", *words, engine=Process) as service, Chromium() as page:
        service.start()
        page.open(service.url, (1440, 900))
        page.wait("document.querySelectorAll('#formats input').length > 5")
        page.run(DROP % files)
        assert page.run("document.getElementById('count').textContent").startswith("2 photos")
        page.run("document.getElementById('send').click()")
        page.wait("location.hash.length === 17")
        page.wait("!document.getElementById('view').hidden")
        scene = Client(service.url).get(f"/scenes/{page.run('location.hash.slice(1)')}").json
        assert [each["name"] for each in scene["photos"]] == ["p9.png", "p10.png"]

        x, y, width, height = map(int, page.box("#view"))
        middle = (slice(y + 150, y + height - 150), slice(x + 50, x + width // 2))
        before = page.screenshot()
        for _ in range(200):  # until the points are unpacked
            if np.ptp(before[middle].astype(int), axis=(0, 1)).max() > 60:
                break
            before = page.screenshot()
        page.drag((x + 200, y + 300), (x + 320, y + 340))
        after = page.screenshot()
        assert (np.abs(after[middle].astype(int) - before[middle]).max(-1) > 30).mean() > 0.005

        where = tmp_path / "downloads"
        page.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(where))
        page.run("document.querySelector('#links a').click()")
        kept = where / "predictions.npz"
        page.wait("true")
        for _ in range(200):
            if kept.exists():
                break
            page.settle()
        assert read_npz(kept).views == 2
        assert not page.errors
        assert all(url.startswith((service.url, "data:")) for url in page.requests)

        page.run("document.getElementById('more').value = 'tum'")
        page.run("document.getElementById('more').dispatchEvent(new Event('change'))")
        page.wait("document.getElementById('links').textContent.includes('trajectory.txt')")

        page.open(service.url, (390, 844), theme="light", touch=True)
        page.wait("document.querySelectorAll('#scenes a').length === 1")
        assert page.run("document.documentElement.scrollWidth") == 390
        page.run("document.querySelector('#scenes a').click()")
        page.wait("!document.getElementById('view').hidden")
        assert page.box("#view")[3] > 844 / 2
        page.run("document.getElementById('delete').click()")
        page.run("document.getElementById('delete').click()")
        page.wait("document.querySelectorAll('#scenes a').length === 0")
        assert not (tmp_path / "out" / scene["id"]).exists() and not page.errors
