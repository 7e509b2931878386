"""How many kernels parts of VGGT-1B launch on a described H200, held by budgets.

`make test-gpu-compile` installs what it takes. Raise a budget only with a reason.
"""

import json
from pathlib import Path

import pytest

from tools.benchmark.launches import launches, parts

pytestmark = [
    pytest.mark.gpu_compile,
    pytest.mark.filterwarnings("ignore:.*Triton.*:DeprecationWarning"),
]
BUDGETS = json.loads(Path(__file__).with_name("budgets.json").read_text())["launches"]


@pytest.mark.parametrize("views", [2, 8])
@pytest.mark.parametrize("name", BUDGETS)
def test_launches_are_within_their_budgets(name, views):
    counts = launches(parts(views)[name]().as_text())
    print(name, views, counts)
    assert counts <= BUDGETS[name]


def test_the_camera_head_launches_no_more_for_more_views():
    assert launches(parts(32)["camera head"]().as_text()) <= BUDGETS["camera head"]


@pytest.mark.parametrize("views", [2, 8])
def test_a_sparse_block_launches_at_most_six_more_than_one_with_a_single_launch(views):
    names = "block, sla", "block, one launch for attention"
    sparse, dense = (launches(parts(views)[name]().as_text()) for name in names)
    print(views, sparse, dense)
    assert sparse <= dense + 6
