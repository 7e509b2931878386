"""Datasets in their own formats, trained on from the command line by a tiny real model."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from lite3r_jax.errors import InputError
from lite3r_jax.experiment import from_config
from lite3r_jax.recipes.vggt import get_config
from lite3r_jax.runs.train import open_data
from tests.data.world import views, write_blendedmvs, write_dtu64
from tests.runs.test_real_runs import SMALL, lite3r, steps
from tools import make_synthetic

CAMERAS_ALONE = {
    "train.data.normalization": "lite3r",
    "train.loss.kind": "multitask",
    "train.loss.multitask_camera.min_valid_pixels": -1,
}


def write_capture(root, made):
    """Photos with cameras and no depth, as nerfstudio has them."""
    root.mkdir()
    frames = []
    for i, view in enumerate(made):
        Image.fromarray(view.rgb).save(root / f"{i}.png")
        pose = np.linalg.inv(np.vstack([view.extrinsics, [0, 0, 0, 1]]))
        pose[:, 1:3] *= -1
        frames.append({"file_path": f"{i}.png", "transform_matrix": pose.tolist()})
    (root / "transforms.json").write_text(json.dumps({"fl_x": 40, "frames": frames}))


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """Name -> source, each dataset in the files that it has."""
    root = tmp_path_factory.mktemp("datasets")
    made = views(64, (28, 36))
    write_dtu64(root / "dtu", {"scan1": made, "scan2": made[::-1]})
    write_capture(root / "desk", made[::8])
    write_blendedmvs(root / "mvs", "attic", made[::16])
    return {
        "dtu64": f"dtu64:{root / 'dtu'}",
        "capture": f"capture:{root / 'desk'}",
        "blendedmvs": f"blendedmvs_layout:{root / 'mvs'}",
        "synthetic": "synthetic:train",
    }


def options(source, **changes):
    settings = from_config(get_config("backbone").to_dict()).train
    data = replace(settings.data, source=source, buckets="1x3x28x28", scenes=2, frames=3, workers=0)
    loop = replace(settings.loop, evaluate_every=0)
    return replace(settings, data=replace(data, **changes), loop=loop)


def test_a_mixture_of_every_format_is_trained_on(datasets, pocket_recipe, pocket_weights, tmp_path):
    source = ",".join(f"{text}*1" for text in datasets.values())
    settings = SMALL | CAMERAS_ALONE | {"train.data.source": source, "train.loop.steps": 4}
    run = tmp_path / "run"
    assert lite3r(pocket_recipe, "train", weights=pocket_weights, output=run, **settings) == 0
    assert len(steps(run)) == 4
    assert all(line["loss_T"] > 0 and not line["skipped"] for line in steps(run))
    assert sum(line["loss_reg_depth"] > 0 for line in steps(run)) == 2  # two have depth


def test_weights_of_a_mixture_are_exact_in_every_cycle(datasets):
    source = f"{datasets['synthetic']}*2,{datasets['blendedmvs']}*1"
    pipeline, _ = open_data(options(source))
    names = [pipeline.batch(step).samples[0].dataset for step in range(6)]
    assert [sorted(names[i : i + 3]) for i in (0, 3)] == [
        ["blendedmvs", "synthetic", "synthetic"]
    ] * 2


def test_data_without_depth_needs_settings_that_can_do_without(datasets):
    with pytest.raises(InputError, match=r"normalization: vggt needs depth, dtu64:.* set lite3r"):
        open_data(options(datasets["dtu64"], normalization="vggt"))
    for name in ("dtu64", "capture"):
        with pytest.raises(InputError, match=r"no scene of .*min_valid_pixels=-1"):
            open_data(options(f"synthetic,{datasets[name]}", normalization="lite3r"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dtu64", "capture", "blendedmvs"])
def test_each_format_is_trained_on_alone(datasets, tiny_dir, tmp_path, name):
    settings = SMALL | CAMERAS_ALONE | {"train.data.source": datasets[name]}
    settings |= {"train.loop.evaluate_every": 0 if name == "blendedmvs" else 2}
    run = tmp_path / "run"
    assert lite3r("vggt.py:backbone", "train", weights=tiny_dir, output=run, **settings) == 0
    assert all(line["loss_T"] > 0 for line in steps(run))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["dtu64", "blendedmvs_layout"])
def test_what_the_generator_writes_is_trained_on(tiny_dir, tmp_path, layout):
    kind, data = layout.removesuffix("_layout"), tmp_path / "data"
    preset = replace(make_synthetic.PRESETS[kind]["tiny"], scenes=1, size=(28, 36), samples=1)
    make_synthetic.write(kind, preset, data, split="train")
    settings = SMALL | CAMERAS_ALONE | {"train.data.source": f"{layout}:{data}"}
    run = tmp_path / "run"
    assert lite3r("vggt.py:backbone", "train", weights=tiny_dir, output=run, **settings) == 0
    assert all(line["loss_T"] > 0 for line in steps(run))
