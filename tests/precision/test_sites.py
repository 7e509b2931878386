"""Rules by path, applied to models that are built: which matrix products are quantized."""

import numpy as np
import pytest

from lite3r_jax.errors import InputError
from lite3r_jax.precision import (
    PRESETS,
    Fp8Rule,
    Int4Rule,
    apply_precision,
    match,
    preset,
)
from tests.precision.net import ALL, LAYERS, by_hand, flat, near, run

COUNTS = {
    # 72 blocks of four Linears and proj_lin; 4 such blocks and 4 Linears in the camera head
    "vggt": {"none": 0, "default": 307, "paper": 384, "paper_w4a16": 156, "paper_w4a8": 308},
    # 24 blocks, the head for known cameras with 4 and 2 Linears, 5 Linears of the camera head
    "da3": {"none": 0, "default": 116, "paper": 147, "paper_w4a16": 63, "paper_w4a8": 119},
    # 60 blocks of four Linears and proj_lin; of the camera head 5 such blocks and 12 Linears
    "pi3": {"none": 0, "default": 270, "paper": 337, "paper_w4a16": 142, "paper_w4a8": 272},
}


@pytest.mark.parametrize(
    "name", ["vggt", *(pytest.param(n, marks=pytest.mark.slow) for n in ("da3", "pi3"))]
)
def test_presets_quantize_what_lite3r_wraps_in_the_published_models(published, name):
    model = published(name)
    before = {path: (v.shape, v.dtype, type(v)) for path, v in flat(model).items()}
    counts = COUNTS[name] | {"int8": COUNTS[name]["default"]}
    for precision, count in counts.items():
        apply_precision(model, preset(precision), count=count)
    assert counts.keys() == PRESETS.keys()
    sites = match(model, preset("paper"))
    assert all("head/" in site.path for site in sites if not site.wrapped)
    left = {site.path for site in match(model, preset("default")) if not site.wrapped}
    assert {path for path in left if "proj_lin" in path or path.startswith("camera_head")} == {
        *(site.path for site in sites if site.path.endswith("proj_lin")),
        *{
            "vggt": {"camera_head/pose_branch/fc2"},
            "da3": {"camera_head/translation", "camera_head/quaternion",
                    "camera_head/field_of_view"},
            "pi3": {"camera_head/translation", "camera_head/rotation"},
        }[name],
    }  # fmt: skip
    # The parameters stay what and where they are.
    after = flat(apply_precision(model, preset("paper")))
    assert {p: (v.shape, v.dtype) for p, v in after.items()} == {p: before[p][:2] for p in before}
    assert {path: (v.shape, v.dtype, type(v)) for path, v in flat(model).items()} == before


def test_presets_serve_a_dense_model_without_heads(published):
    dense = published("vggt", "dense")
    assert sum(site.layers for site in match(dense, preset("paper")) if site.wrapped) == 308
    del dense.camera_head
    apply_precision(dense, preset("default"), count=288)


def test_the_first_rule_that_fits_counts(net, x):
    rules = (
        Fp8Rule("heads", weights=None, activations=None),
        Fp8Rule("layers", activations=None),
        Fp8Rule("layers|heads|proj_lin$", optional=True, activations=None, scale="tensor"),
    )
    sites = {site.path: (site.layers, site.rule, site.wrapped) for site in match(net, rules)}
    assert sites == {
        "cores/0/proj_lin": (1, rules[2], True),
        "heads/0": (1, rules[0], False),
        "layers": (LAYERS, rules[1], True),
    }
    [(ys, head, _)] = run(x, apply_precision(net, rules, count=4))
    near(ys, by_hand(net, x, weights="e4m3", activations=None, scale="row"))
    near(head, np.asarray(ys[0]) @ np.asarray(net.heads[0].kernel[...]))


def test_rules_that_find_nothing_name_what_is_near(net):
    with pytest.raises(InputError, match=r"'laiers' finds no Linear; nearest are: layers, "):
        apply_precision(net, (Fp8Rule("laiers"),))
    with pytest.raises(InputError, match="'layers' finds only sites of rules before it"):
        apply_precision(net, (Fp8Rule("layers|heads"), Fp8Rule("layers")))
    with pytest.raises(InputError, match=r"'\(' is no regular expression"):
        apply_precision(net, (Fp8Rule("("),))
    with pytest.raises(InputError, match="quantize 3 Linears, expected 4"):
        apply_precision(net, (Fp8Rule("layers"),), count=4)
    with pytest.raises(InputError, match="choose one of: none, default, paper"):
        preset("fp16")


def test_refuses_what_cannot_be_quantized(net):
    with pytest.raises(InputError, match=r"heads of cores/0/proj_lin are computed in turns"):
        apply_precision(net, (Fp8Rule("proj_lin", scale="tensor"),))
    for once in (ALL, (Fp8Rule("."),)):
        once = apply_precision(net, once)
        for again in ((Fp8Rule("layers"),), (Fp8Rule("proj_lin", activations=None),)):
            with pytest.raises(InputError, match="is quantized already"):
                apply_precision(once, again)
    for settings in ({"weights": "int4"}, {"activations": "fp8"}, {"gradients": 8}, {"scale": "k"}):
        with pytest.raises(InputError, match="precision rule 'layers'"):
            Fp8Rule("layers", **settings)
    with pytest.raises(InputError, match="gradients alone cannot be quantized"):
        Fp8Rule("layers", weights=None, activations=None, gradients="e5m2")
    with pytest.raises(InputError, match="group of at least 1 and 2 to 8 activation bits"):
        Int4Rule("layers", activation_bits=16)
