"""Collectives in the text of a program: kinds, bytes, and how often loops run them."""

import pytest

from tools.benchmark.collectives import Collective, collectives

PROGRAM = """\
HloModule jit_f, is_scheduled=true, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  ROOT %sum = f32[] add(%a, %b)
}

%inner (p: (s32[], bf16[2,3])) -> (s32[], bf16[2,3]) {
  %start = (bf16[2,3]{1,0}, bf16[8,3]{1,0}) all-gather-start(%x), channel_id=1, dimensions={0}
  %done = bf16[8,3]{1,0} all-gather-done(%start), metadata={op_name="all-gather(x)"}
  ROOT %t = (s32[], bf16[2,3]{1,0}) tuple(%i, %y)
}

%outer (p: (s32[], bf16[2,3])) -> (s32[], bf16[2,3]) {
  %loop = (s32[], bf16[2,3]{1,0}) while(%p), condition=%c, body=%inner, backend_config={TRIPS}
  ROOT %r = (pred[4]{0}, c64[], f8e4m3fn[5]{0}) all-to-all(%loop), channel_id=2
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %two = (s32[], bf16[2,3]{1,0}) while(%p), condition=%c, body=%outer, \
backend_config={"known_trip_count":{"n":"3"}}
  %once = f32[8]{0} fusion(%p), kind=kLoop, calls=%add
  ROOT %all = f32[8]{0} all-reduce(%once), channel_id=3, to_apply=%add
}
"""


def test_results_are_counted_once_a_turn_of_every_loop_around():
    text = PROGRAM.replace("TRIPS", '"known_trip_count":{"n":"5"},"known_init_step":{}')
    assert collectives(text) == [
        Collective("all-gather", 8 * 3 * 2, 15),
        Collective("all-to-all", 4 + 8 + 5, 3),
        Collective("all-reduce", 32, 1),
    ]


def test_loops_of_unknown_length_are_refused():
    with pytest.raises(ValueError, match="unknown number"):
        collectives(PROGRAM.replace("TRIPS", ""))


TPU = """\
%inner (p: (s32[], bf16[8,3])) -> (s32[], bf16[8,3]) {
  %all = bf16[8,3]{1,0} all-gather(%x), channel_id=1, dimensions={0}
  ROOT %t = (s32[]{:T(128)}, bf16[8,3]{1,0}) tuple(%i, %all)
}

%below (p: (s32[], bf16[8,3])) -> pred[] {
  %bound = s32[]{:T(128)} constant(24)
  %p = (s32[]{:T(128)}, bf16[8,3]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=1
  ROOT %lt = pred[]{:T(512)} compare(%i, %bound), direction=LT, metadata={op_name="lt"}
}

ENTRY %main (p: bf16[8,3]) -> bf16[8,3] {
  %four = s32[]{:T(128)} constant(4)
  %start.1 = s32[]{:T(128)} copy(%four), backend_config={"flag_configs":[]}
  %given = (bf16[8,3]{1,0}, s32[]{:T(128)}) tuple(%p, /*index=1*/%start.1)
  %loop = (bf16[8,3]{1,0}, s32[]{:T(128)}) while(%given), condition=%below, body=%inner
  ROOT %x = bf16[8,3]{1,0} get-tuple-element(%loop), index=0
}
"""


def test_loops_of_scans_are_counted_where_the_compiler_notes_nothing():
    assert collectives(TPU) == [Collective("all-gather", 8 * 3 * 2, 24 - 4)]
    for known in ("constant(24)", "direction=LT", "copy(%four)"):
        with pytest.raises(ValueError, match="unknown number"):
            collectives(TPU.replace(known, "other(%p)"))
