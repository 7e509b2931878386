"""The recipe of the small teacher."""

import pytest

from lite3r_jax.data.pipeline import parse_buckets
from lite3r_jax.errors import InputError
from lite3r_jax.recipes.vggt_tiny_teacher import VARIANTS, get_config


def test_every_batch_has_as_many_views_and_auxiliary_losses_fade_at_the_end():
    views = {}
    for variant in ("", *VARIANTS):
        config = get_config(variant)
        (batch,) = {b.batch * b.views for b in parse_buckets(config.train.data.buckets)}
        auxiliary = config.small_teacher.auxiliary
        steps = config.train.loop.steps
        assert auxiliary.fade_from + auxiliary.fade_steps == steps
        views[variant] = batch * steps
    assert views["gpu"] == pytest.approx(views[""], rel=0.03)


def test_an_unknown_variant_is_named():
    with pytest.raises(InputError, match=r"'cluster'.*gpu"):
        get_config("cluster")
