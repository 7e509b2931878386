"""Views of a scene over several devices: results of one device, through every entrance."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lite3r_jax.errors import InputError
from lite3r_jax.infer.memory import Forward
from lite3r_jax.infer.sharing import describe_sharing
from lite3r_jax.main import main
from lite3r_jax.mesh import ViewParts, check_views, devices_of, make_view_mesh

ROOT = Path(__file__).parents[2]
CONFIG = "--config=configs/vggt.py"


def on_devices(count: int, program: str, *arguments: object) -> str:
    """What a program prints on so many devices of a CPU."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stdout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("views:8", "here is no axis 'views'; did you mean 'view'"),
        ("data:2", "no axis 'data'"),
        ("view", "expected view:N for N devices, such as view:8; got 'view'"),
        ("view:0", "got 'view:0'"),
        ("view:-1", "got 'view:-1'"),
        ("view:\u0662", "got"),
        ("8", "no axis '8'"),
    ],
)
def test_what_is_no_mesh_of_views_is_refused(text, message):
    with pytest.raises(InputError, match=message) as error:
        devices_of(text)
    assert str(error.value).startswith("compute.mesh: ") and "\n" not in str(error.value)


def test_devices_that_are_not_there_are_refused():
    one = make_view_mesh("view:1")
    assert one is not None and one.size == 1 and make_view_mesh("") is None
    devices = list(one.devices.flat) * 8
    for text in ("view:3", "view:16"):
        with pytest.raises(InputError, match="does not divide the 8 cpu devices here") as error:
            make_view_mesh(text, devices)
        assert "choose from view:1, view:2, view:4, view:8" in str(error.value)
    assert check_views(one, 1) == ViewParts(1, 1)


def test_a_model_that_does_not_say_how_is_refused(fake_model):
    with pytest.raises(InputError, match=r"compute\.mesh: FakeModel does not say how its views"):
        Forward(fake_model(), mesh=make_view_mesh("view:1"))
    with pytest.raises(InputError, match=r"compute\.rest: FakeModel does not let tokens rest"):
        Forward(fake_model(), rest="host")
    with pytest.raises(InputError, match=r"compute\.weights=split: .* set compute\.mesh=view:N"):
        Forward(fake_model(), split_weights=True)


def test_the_commands_refuse_a_mesh_that_is_none(tiny_dir, tmp_path, capsys):
    settings = {"input": tmp_path, "weights": tiny_dir, "output": tmp_path / "out"}
    words = [CONFIG, *(f"--config.{name}={value}" for name, value in settings.items())]
    photo = np.zeros((40, 40, 3), np.uint8)
    Image.fromarray(photo).save(tmp_path / "a.png")
    assert main([*words, "--mode=reconstruct", "--config.compute.mesh=frame:2"]) == 2
    assert "no axis 'frame'" in capsys.readouterr().err
    few = ["--config.compute.mesh=view:4", "--config.bench.views=2,8"]
    assert main([*words, "--mode=bench", *few]) == 2
    assert "bench.views: 2 are fewer than the devices of" in capsys.readouterr().err


PHOTOS = """
    import sys
    from lite3r_jax.main import main
    weights, photos, out = sys.argv[1:4]
    words = ["--config=configs/vggt.py", f"--config.weights={weights}", f"--config.input={photos}",
             "--config.images.size=56", "--config.formats=npz", "--mode=reconstruct"]
    assert main([*words, f"--config.output={out}/one"]) == 0
    words.append("--config.compute.mesh=view:4")
    assert main([*words, f"--config.output={out}/four"]) == 2  # three photos
    words[-1] = "--config.compute.mesh=view:2"
    assert main([*words, f"--config.output={out}/two"]) == 0
    words = ["--config=configs/vggt.py", f"--config.weights={weights}", "--mode=eval",
             "--config.evaluate.protocols=synthetic:test", "--config.evaluate.views=2",
             "--config.evaluate.scenes=1", "--config.evaluate.variants=dense-float32",
             "--config.compute.mesh=view:2", "--config.compute.weights=split"]
    assert main([*words, f"--config.output={out}/scores"]) == 0
"""


@pytest.mark.slow
def test_photos_become_the_files_of_one_device(tiny_dir, tmp_path):
    photos, rng = tmp_path / "photos", np.random.default_rng(0)
    photos.mkdir()
    for name in "abc":
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(photos / f"{name}.png")
    shown = on_devices(4, PHOTOS, tiny_dir, photos, tmp_path)
    assert "view:2, 2 views each, 1 twice to fill up; attention over views by heads in 4" in shown
    with (
        np.load(tmp_path / "one" / "predictions.npz") as one,
        np.load(tmp_path / "two" / "predictions.npz") as two,
    ):
        for name in ("depth", "depth_conf", "extrinsics"):
            np.testing.assert_allclose(two[name], one[name], rtol=1e-4, atol=1e-5, err_msg=name)
    assert (tmp_path / "scores" / "report.html").exists()
    report = json.loads((tmp_path / "two" / "report.json").read_text())
    sharing = report["devices"]
    (layers,) = sharing.pop("attention")
    assert sharing == {"mesh": "view:2", "views_each": 2, "filled_up": 1}
    size = report["scene"]["network_size"]
    tokens = 4 * (5 + size["height"] // 14 * size["width"] // 14)  # of two times two views
    # half of queries, keys, values and outputs, half of which it has; 64 channels of 4 bytes
    assert layers == {"way": "heads", "layers": 4, "bytes_received_per_layer": tokens * 64 * 4}
    assert "by heads in 4 layers" in describe_sharing(sharing | {"attention": [layers]})
    assert json.loads((tmp_path / "one" / "report.json").read_text())["devices"] is None


MODELS = """
    import sys
    import jax, numpy as np
    from lite3r_jax.weights.load import load
    from lite3r_jax.attention.presets import parse_plan
    from lite3r_jax.evaluation.predictor import Predictor
    from lite3r_jax.infer.memory import Forward
    from lite3r_jax.mesh import fetch_views, make_view_mesh

    jax.config.update("jax_default_matmul_precision", "highest")
    sparse, diverse = "sla_global(keep=0.4,block=8)", "key_views(count=3)"
    rng = np.random.default_rng(0)
    for name, weights in zip(("vggt", "da3", "pi3"), sys.argv[1:], strict=True):
        cases = {"": (1, 2, 4, 8), sparse: (4, 8)} if name == "vggt" else {"": (4,), sparse: (2,)}
        if name == "da3":
            cases[diverse] = (4,)
        for plan, counts in cases.items():
            heads = ["camera", "depth", *["ray"][: name == "da3"]]
            model = load(weights, heads=heads, plan=parse_plan(plan) if plan else None)
            arguments = {"rays": True} if name == "da3" else {}
            if name == "pi3":
                arguments = {"points": True, "intrinsics": "shared"}
            views = 9 if name == "vggt" else 6
            images = rng.random((1, views, 28, 42, 3), dtype=np.float32)
            plain = Forward(model, arguments=arguments)
            wanted = fetch_views(plain(images, plain.plan(views, 28, 42)), views)
            if plan == "":
                resting = Forward(model, arguments=arguments, rest="host")
                plan_ = resting.plan(views, 28, 42)
                assert plan_.on_host
                got = fetch_views(resting(images, plan_), views)
                for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
                    # Compiled quickly. A focal length of a narrow field of view, of random weights,
                    # is the inverse of a small angle and multiplies its rounding.
                    atol = 5e-5 * np.abs(b[np.isfinite(b)]).max()
                    np.testing.assert_allclose(a, b, rtol=0, atol=atol, err_msg=name)
            for count in counts:
                mesh = make_view_mesh(f"view:{count}")
                forward = Forward(model, arguments=arguments, mesh=mesh)
                plan_ = forward.plan(views, 28, 42)
                prediction = forward(images, plan_)
                assert len(prediction.depth.sharding.device_set) == count
                got = fetch_views(prediction, views)
                for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
                    good = np.isfinite(b)
                    assert (good == np.isfinite(a)).all()
                    scale = np.abs(b[good]).max()
                    error = np.abs(a[good] - b[good]).max() / scale
                    assert a.shape == b.shape and error < 5e-5, (name, plan, count, error)
        if name == "pi3":
            (output,) = Predictor(model, mesh=mesh)(images)
            assert output.depth.shape == (views, 28, 42)
            (resting,) = Predictor(model, mesh=mesh, on_host=True)(images)
            np.testing.assert_allclose(resting.depth, output.depth, rtol=1e-5)
            predictor = Predictor(model, mesh=mesh, split_weights=True)
            shards = [x.addressable_shards[0].data for x in jax.tree.leaves(predictor._state)]
            whole = sum(x.nbytes for x in jax.tree.leaves(predictor._state))
            assert sum(shard.nbytes for shard in shards) < 0.7 * whole
            (split,) = predictor(images)
            scale = np.abs(output.depth).max()
            np.testing.assert_allclose(split.depth, output.depth, rtol=0, atol=5e-5 * scale)
    print("compared")
"""


@pytest.mark.slow
def test_every_backbone_gives_the_numbers_of_one_device(tiny_dir, tiny_da3_dir, tiny_pi3_dir):
    assert on_devices(8, MODELS, tiny_dir, tiny_da3_dir, tiny_pi3_dir) == "compared\n"


MORE = """
    import json, sys
    import jax, jax.numpy as jnp, numpy as np
    from flax import nnx
    from lite3r_jax.attention.presets import parse_plan
    from lite3r_jax.backbones.base import get_backbone
    from lite3r_jax.infer.memory import Forward
    from lite3r_jax.mesh import fetch_views, make_view_mesh
    from lite3r_jax.weights.load import load

    jax.config.update("jax_default_matmul_precision", "highest")
    vggt, da3, pi3x, case = sys.argv[1:]
    rng = np.random.default_rng(0)
    images = rng.random((1, 7, 28, 42, 3), dtype=np.float32)

    def compare(name, model, counts, cameras=(), bound=5e-5, **more):
        arguments = {"known": bool(cameras)}
        plain = Forward(model, **arguments)
        wanted = fetch_views(plain(images, plain.plan(7, 28, 42), cameras), 7)
        for count in counts:
            mesh = make_view_mesh(f"view:{count}")
            forward = Forward(model, mesh=mesh, **arguments, **more)
            whole = sum(x.nbytes for x in jax.tree.leaves(nnx.state(model)))
            shards = (x.addressable_shards[0].data for x in jax.tree.leaves(forward._state))
            part = sum(shard.nbytes for shard in shards)
            # tokens and biases, and kernels with an odd number of channels, are not split
            assert part < 0.7 * whole if more else part == whole, (name, part / whole)
            got = fetch_views(forward(images, forward.plan(7, 28, 42), cameras), 7)
            for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
                good = np.isfinite(b)
                assert a.shape == b.shape and (good == np.isfinite(a)).all()
                error = np.abs(a[good] - b[good]).max(initial=0) / np.abs(b[good]).max(initial=1e-9)
                assert error < bound, (name, count, error)

    def merging(plan):
        # Of tokens that are equally similar but for rounding another one may be taken.
        model = load(vggt, heads=("camera", "depth"), plan=parse_plan(plan))
        compare(plan, model, (4,), bound=1e-3)

    def split():
        compare("split", load(vggt, heads=("camera", "depth")), (4,), split_weights=True)

    def split_sparse():
        plan = parse_plan("sla_global(keep=0.4,block=8)")
        model = load(vggt, heads=("camera", "depth"), plan=plan)
        compare("split sparse", model, (4,), split_weights=True)

    def known():
        model = load(da3, heads=("camera", "depth", "camera_encoder"))
        extrinsics = np.tile(np.eye(3, 4, dtype=np.float32), (1, 7, 1, 1))
        extrinsics[..., 3] = rng.standard_normal((1, 7, 3))
        focal = np.float32([[40, 0, 21], [0, 40, 14], [0, 0, 1]])
        cameras = extrinsics, np.tile(focal, (1, 7, 1, 1))
        compare("known", model, (4,), cameras)
        compare("known, split", model, (2,), cameras, split_weights=True)

    def meters():
        backbone = get_backbone("pi3")
        config = backbone.config_from_json(json.loads(pi3x))
        model = backbone.build(
            config, heads=("camera", "depth"), plan=None, dtype=jnp.float32,
            param_dtype=jnp.float32, rngs=nnx.Rngs(0),
        )
        metric = model.depth_head.metric
        metric.token[...] = jnp.asarray(rng.standard_normal(metric.token.shape), jnp.float32)
        compare("pi3x", model, (4,))
        compare("split pi3x", model, (2,), split_weights=True)

    cases = {"split": split, "split_sparse": split_sparse, "known": known, "meters": meters}
    cases[case]() if case in cases else merging(case)
    print("compared")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        "spark3r(query_factor=2,key_factor=2,others=1)", "merge_queries(factor=3)", "fastvggt",
        "speed3r(window=2,top=2)", "split", "split_sparse", "known", "meters",
    ],
)  # fmt: skip
def test_merging_cameras_meters_and_split_weights_are_those_of_one_device(
    case, tiny_dir, tiny_da3_dir, tiny_pi3_json
):
    sizes = {"conv_head": {"stages": [32, 16, 16], "last": 8}, "metric": True}
    sizes["metric_head"] = {"dim": 16, "heads": 2, "depth": 1, "out": 16}
    pi3x = json.dumps(tiny_pi3_json | sizes)
    assert on_devices(8, MORE, tiny_dir, tiny_da3_dir, pi3x, case) == "compared\n"
