"""The sky: found in generated scenes with and without one, where the truth is known."""

import numpy as np
import pytest

from lite3r_jax.data.synthetic.source import SyntheticScenes
from lite3r_jax.exports.sky import sky
from tools.benchmark import sky as benchmark

SIZE = (112, 154)


def views(split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(images uint8 [N, H, W, 3], bool [N, H, W], where there is no depth)."""
    source = SyntheticScenes(split, count=count, frames=4, first=40)
    samples = [source.read(scene, (0, 2), SIZE) for scene in source.scenes]
    images = np.concatenate([np.rint(sample.images * 255).astype(np.uint8) for sample in samples])
    return images, np.concatenate([sample.depth <= 0 for sample in samples])


@pytest.fixture(scope="module")
def open_air():
    return views("sky", 3)


def test_sky_is_found_where_there_is_one(open_air):
    images, truth = open_air
    masks = np.stack([sky(image) for image in images])
    both = (masks & truth).sum()
    assert both / masks.sum() > 0.99 and both / truth.sum() > 0.98


def test_rooms_have_no_sky():
    images, truth = views("test", 3)
    assert not truth.any()
    assert not np.any([sky(image) for image in images])


def test_sky_is_above_and_reaches_the_border(open_air):
    image, truth = open_air[0][0], open_air[1][0]
    assert truth[0].any()
    assert not sky(image[::-1]).any(), "upside down it is a floor"
    framed = np.zeros((SIZE[0] + 20, SIZE[1] + 30, 3), np.uint8)
    framed[10:-10, 15:-15] = image
    assert not sky(framed).any(), "a picture on a wall"
    inside = np.zeros(framed.shape[:2], bool)
    inside[10:-10, 15:-15] = True
    mask = sky(framed, inside)  # the same as a photo with borders
    assert not mask[~inside].any()
    assert (mask[inside].reshape(SIZE) != sky(image)).mean() < 0.01


def test_colors_decide(open_air):
    image = open_air[0][0]
    assert not sky(image[..., ::-1]).any(), "orange, as a wall may be"
    assert not sky(np.full((60, 80, 3), 90, np.uint8)).any()
    assert not sky(image, np.zeros(SIZE, bool)).any()


def test_the_benchmark_prints_what_was_measured(capsys):
    benchmark.main(["--scenes", "1", "--views", "1", "--size", "56x84", "--splits", "sky,test"])
    lines = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if "|" in line]
    rows = {line[0].strip(): [cell.strip() for cell in line[1:]] for line in lines}
    precision, recall = map(float, rows["sky"][1:3])
    assert precision > 0.95 and recall > 0.9
    assert rows["test"][1:3] == ["", ""] and float(rows["test"][3].rstrip("%")) == 0
