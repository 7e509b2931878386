"""Options of the pipeline, and their errors."""

import pytest

from lite3r_jax.data.pipeline import Bucket, Part, PipelineOptions, parse_buckets
from lite3r_jax.errors import InputError
from tests.data.pipeline.numbers import Numbers

ONE = (Bucket(2, 2, 14, 28),)


def test_buckets_are_read_from_text():
    assert parse_buckets("8x2x518x392") == (Bucket(8, 2, 518, 392),)
    assert parse_buckets("8x2x518x518, 4x24x392x518*3") == (
        Bucket(batch=8, views=2, height=518, width=518),
        Bucket(batch=4, views=24, height=392, width=518, weight=3),
    )


@pytest.mark.parametrize(
    "text", ["", "8x2x518", "8x2x518x518;", "8x2x518x518,", "ax2x3x4", "٣x2x9x9"]
)
def test_text_that_is_no_bucket_is_named(text):
    with pytest.raises(InputError, match=r"buckets: expected BATCHxVIEWSxHEIGHTxWIDTH.*got '"):
        parse_buckets(text)


@pytest.mark.parametrize(
    "make,message",
    [
        (lambda: Bucket(0, 2, 14, 14), "batch: expected an integer of at least 1, got 0"),
        (lambda: Bucket(10**9, 2, 14, 14), "batch: expected at most 65536, got 1000000000"),
        (lambda: Bucket(1, 2, 14, 99_999_999), "width: expected at most 16384, got 99999999"),
        (lambda: Bucket(1, 1, 14, 14), "views: expected 2 to 24, got 1"),
        (lambda: Bucket(1, 25, 14, 14), "views: expected 2 to 24, got 25"),
        (lambda: Bucket(1, 2, 14, 14.0), "width: expected an integer of at least 1, got 14.0"),
        (lambda: Bucket(1, 2, 14, 14, weight=0), "weight: expected an integer of at least 1, got"),
        (lambda: Part(Numbers(), weight=True), "weight: expected an integer of at least 1, got"),
        (lambda: Part(Numbers(), strategy="best"), "strategy: expected one of pairs, random"),
        (lambda: PipelineOptions(()), "buckets: got none"),
        (lambda: PipelineOptions(ONE, seed=-1), "seed: expected an integer of at least 0, got -1"),
        (lambda: PipelineOptions(ONE, workers=-1), "workers: expected an integer of at least 0"),
        (lambda: PipelineOptions(ONE, workers=1, prefetch=0), "prefetch: expected an integer of"),
        (lambda: PipelineOptions(ONE, fault_limit=-1), "fault_limit: expected an integer of at"),
        (lambda: PipelineOptions(ONE, normalization="unit"), "normalization: expected lite3r"),
        (lambda: PipelineOptions((Bucket(1, 2, 9, 9, 6000),) * 2), "buckets: expected weights of"),
    ],
)  # fmt: skip
def test_options_without_a_meaning_are_refused_by_name(make, message):
    with pytest.raises(InputError) as caught:
        make()
    assert str(caught.value).startswith(message)
