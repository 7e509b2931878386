"""The contract of data sources: a toy dataset, registered by one call, goes through everything."""

import json

import numpy as np
import pytest

from lite3r_jax.data.registry import _SOURCES
from lite3r_jax.data.sources import register_source
from lite3r_jax.data.views import Sample, validate
from lite3r_jax.errors import InputError
from tests.data.world import cast, look_at
from tests.runs.test_real_runs import SMALL, lite3r, steps
from tools import check_dataset


class Rooms:
    """The new dataset: a room that is looked at from an arc, so many scenes as its name says."""

    def __init__(self, argument, split, options):
        del options
        if not argument.isdecimal():
            raise InputError(f"rooms:{argument}: expected a number of scenes")
        first = 0 if split == "train" else 100
        self.scenes = tuple(f"room{first + n}" for n in range(int(argument)))

    def frames(self, scene):
        return tuple(range(4))

    def pairs(self, scene):
        return None

    def read(self, scene, frames, size):
        height, width = size
        k = np.array([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1]], np.float32)
        turn = 0.1 * int(scene.removeprefix("room"))
        angles = [turn + 0.2 * frame for frame in frames]
        poses = [look_at((2 * np.sin(a), -0.5, -2 * np.cos(a)), (0, 0, 0)) for a in angles]
        seen = [cast(pose, k.astype(np.float64), size) for pose in poses]
        depth = np.stack([depth for _, depth in seen]).astype(np.float32)
        return validate(
            Sample(
                dataset="rooms",
                scene=scene,
                frames=tuple(map(str, frames)),
                images=np.stack([rgb for rgb, _ in seen]).astype(np.float32) / 255,
                extrinsics=np.stack(poses).astype(np.float32),
                intrinsics=np.tile(k, (len(frames), 1, 1)),
                depth=depth,
                mask=depth > 0,
                unit="m",
            )
        )


@pytest.fixture(autouse=True)
def rooms():
    register_source("rooms", Rooms, argument="SCENES", splits=("train",), unit="m", license="none")
    yield
    del _SOURCES["rooms"]


@pytest.mark.slow
def test_it_is_trained_on_also_in_a_mixture(pocket_recipe, pocket_weights, tmp_path):
    settings = SMALL | {"train.data.source": "rooms:2*2,rooms:3*1"}
    run = tmp_path / "run"
    assert lite3r(pocket_recipe, "train", weights=pocket_weights, output=run, **settings) == 0
    assert len(steps(run)) == 2 and all(line["loss_T"] > 0 for line in steps(run))


def test_a_student_is_distilled_on_it(pocket_recipe, pocket_weights, tmp_path):
    settings = SMALL | {"train.data.source": "rooms:2", "distill.plan": "sla_global(block=4)"}
    run = tmp_path / "run"
    assert lite3r(pocket_recipe, "train", weights=pocket_weights, output=run, **settings) == 0
    assert all(line["distill_loss"] > 0 for line in steps(run))
    assert (run / "student").is_dir()


def test_it_is_evaluated_on(pocket_recipe, pocket_weights, tmp_path):
    settings = {"evaluate.protocols": "rooms:2@3", "evaluate.size": "28x28"}
    out = tmp_path / "out"
    assert lite3r(pocket_recipe, "eval", weights=pocket_weights, output=out, **settings) == 0
    (result,) = json.loads((out / "report.json").read_text())["results"]
    assert (result["protocol"], result["views"]) == ("rooms:2", 3)
    assert result["metrics"]["abs_rel"]["value"] > 0
    assert len(list(out.glob("scenes/*/rooms-2-3/*room10[01].json"))) == 2


def test_it_is_checked(tmp_path, capsys):
    assert check_dataset.main(["rooms:2", "--sheet", str(tmp_path / "sheet.png")]) == 0
    shown = capsys.readouterr().out
    assert "rooms:2: 2 scenes; license: none" in shown
    assert "room100: 4 frames of 518x518, depth in 100 % of the pixels" in shown


def test_a_wrong_argument_and_a_wrong_name_are_one_line(tiny_dir, tmp_path, capsys):
    for source, message in (
        ("rooms:many", "rooms:many: expected a number of scenes"),
        ("roms:2", "data source 'roms' is not known; did you mean 'rooms'?"),
    ):
        settings = SMALL | {"train.data.source": source}
        code = lite3r("vggt.py:backbone", "train", weights=tiny_dir, output=tmp_path, **settings)
        error = capsys.readouterr().err
        assert code == 2 and message in error and error.count("\n") == 1
