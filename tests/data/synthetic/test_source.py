"""The generated world as a source of samples."""

import pickle

import numpy as np
import pytest

from lite3r_jax.data.sampling import choose_frames, overlap_scores
from lite3r_jax.data.synthetic.source import SyntheticScenes
from lite3r_jax.data.transforms import fit_frames
from lite3r_jax.data.views import cross_view_check, validate
from lite3r_jax.errors import InputError

SIZE = (72, 96)


@pytest.fixture(scope="module")
def source():
    return SyntheticScenes("train", 20, 5)


@pytest.fixture(scope="module")
def sample(source):
    return source.read(source.scenes[2], (0, 1, 2, 3, 4), SIZE)


def test_samples_keep_the_contract(sample, source):
    assert validate(sample) is sample
    assert sample.name == f"synthetic {source.scenes[2]}" and sample.size == SIZE
    assert sample.frames == tuple(f"{frame:08d}" for frame in range(5))
    assert sample.mask is not None and sample.mask.all()


def test_views_of_a_sample_agree(sample):
    check = cross_view_check(sample)
    near = np.abs(np.subtract.outer(range(5), range(5))) == 1
    assert check.in_view[near].min() > 0.3 and check.visible[near].mean() > 0.6
    assert check.error[near].max() < 0.02


def test_colors_agree_across_views(sample):
    """Points seen in two views have one color there, but for exposure and pixel sizes."""
    e, k = sample.extrinsics.astype(float), sample.intrinsics.astype(float)
    v, u = np.mgrid[0 : SIZE[0], 0 : SIZE[1]].reshape(2, -1)
    z = sample.depth[0, v, u].astype(float)
    world = e[0, :, :3].T @ (np.linalg.solve(k[0], [u, v, np.ones(len(u))]) * z - e[0, :, 3:])
    moved = e[1, :, :3] @ world + e[1, :, 3:]
    x, y = np.rint((k[1] @ moved)[:2] / moved[2]).astype(int)
    on = (moved[2] > 0) & (x >= 0) & (x < SIZE[1]) & (y >= 0) & (y < SIZE[0])
    u, v, x, y, far = u[on], v[on], x[on], y[on], moved[2, on]
    same = np.abs(sample.depth[1, y, x] / far - 1) < 0.01
    a, b = sample.images[0, v[same], u[same]], sample.images[1, y[same], x[same]]
    shuffled = np.random.default_rng(0).permutation(len(b))
    assert np.abs(a - b).mean() < 0.6 * np.abs(a - b[shuffled]).mean()
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.6


def test_a_frame_does_not_depend_on_the_others(source, sample):
    alone = source.read(source.scenes[2], (3,), SIZE)
    np.testing.assert_array_equal(alone.images[0], sample.images[3])
    np.testing.assert_array_equal(alone.depth[0], sample.depth[3])
    np.testing.assert_array_equal(alone.extrinsics[0], sample.extrinsics[3])


def test_pairs_are_the_overlap_that_depth_shows(source, sample):
    pairs = source.pairs(source.scenes[2])
    seen = overlap_scores(cross_view_check(sample, tolerance=0.05), range(5))
    for a in range(5):
        assert pairs[a].keys() == set(range(5)) - {a}
        for b, score in pairs[a].items():
            assert score == pairs[b][a]
            assert score == pytest.approx(seen[a].get(b, 0), abs=0.12)
    chosen = choose_frames(range(5), 3, "pairs", seed=0, index=0, pairs=pairs)
    assert len(set(chosen)) == 3


def test_smaller_sizes_show_the_middle(source):
    """At the size that was planned, frames cut and resized are what is drawn small."""
    scene = source.scenes[4]
    whole = source.scene(scene).cameras.size
    frame = source.read_frame(scene, 0)
    cut = fit_frames([frame], (48, 48), dataset="", scene=scene)
    drawn = source.read(scene, (0,), (48, 48))
    assert frame.image.size == whole[::-1]
    np.testing.assert_allclose(drawn.intrinsics, cut.intrinsics, rtol=1e-6)
    assert np.median(np.abs(drawn.depth / cut.depth - 1)) < 0.01
    assert np.abs(drawn.images - cut.images).mean() < 0.05


def test_copies_in_other_processes_give_the_same(source, sample):
    data = pickle.dumps(source)
    assert len(data) < 2000
    copy = pickle.loads(data)
    assert copy.scenes == source.scenes and copy.frames(copy.scenes[0]) == (0, 1, 2, 3, 4)
    again = copy.read(copy.scenes[2], (1,), SIZE)
    np.testing.assert_array_equal(again.images[0], sample.images[1])


def test_scenes_are_numbered_within_their_split():
    later = SyntheticScenes("test", 3, 4, first=7)
    assert later.scenes == ("test-000000007", "test-000000008", "test-000000009")
    whole = SyntheticScenes("test", 20, 4)
    assert later.scene("test-000000008") is whole.scene("test-000000008")


def test_wrong_arguments_are_refused(source):
    for options, message in [
        ({"split": "dev"}, "split: expected one of train, "),
        ({"count": 0}, "count and first: expected 1 or more scenes"),
        ({"first": -1}, "count and first: "),
        ({"first": 10**9}, "count and first: "),
        ({"frames": 1}, "frames and samples: expected at least 2 and 1, got 1 and 1"),
        ({"samples": 0}, "frames and samples: "),
        ({"renderer": "cuda"}, "renderer: expected numpy or jax, got 'cuda'"),
    ]:
        with pytest.raises(InputError, match=message):
            SyntheticScenes(**options)
    for scene in ("train-000000020", "test-000000001", "train-1", "train", "train-00000000x"):
        with pytest.raises(InputError, match="scene: expected one of train-000000000 to"):
            source.frames(scene)
    for frame in (-1, 5):
        with pytest.raises(InputError, match=f"expected frames 0 to 4, got {frame}"):
            source.read(source.scenes[0], (0, frame), SIZE)
    with pytest.raises(InputError, match="size: expected"):
        source.read(source.scenes[0], (0,), (0, 4))


def test_remembered_frames_are_those_that_are_drawn_and_are_drawn_once(monkeypatch):
    from lite3r_jax.data.synthetic import source as module

    drawn = []

    def counted(world, cameras, **how):
        drawn.append(len(cameras.center))
        return draw(world, cameras, **how)

    draw = module.draw
    monkeypatch.setattr(module, "draw", counted)
    anew, kept = SyntheticScenes("test", 2, 4), SyntheticScenes("test", 2, 4, cache=True)
    for frames, count in (((0, 2), 2), ((2, 1), 3), ((1, 0, 2), 3)):
        got = kept.read(kept.scenes[1], frames, (24, 32))
        assert len(drawn) == count
        here, drawn[:] = drawn.copy(), drawn
        want = anew.read(anew.scenes[1], frames, (24, 32))
        drawn[:] = here
        for name in ("images", "depth", "extrinsics", "intrinsics"):
            np.testing.assert_array_equal(getattr(got, name), getattr(want, name))
