"""Counting the kernels that a compiled program launches."""

import pytest

from tools.benchmark.launches import launches, operations

PROGRAM = """HloModule jit_f, entry_computation_layout={()->f32[8]{0}}

%fused_add (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %a = f32[8]{0} add(%p, %p)
}

%inner (arg: (s32[], f32[8])) -> (s32[], f32[8]) {
  %arg = (s32[], f32[8]{0}) parameter(0)
  %x = f32[8]{0} get-tuple-element(%arg), index=1
  %f = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused_add
  %g = (f32[8]{0}, s8[64]{0}) custom-call(%f, %f), custom_call_target="__cublas$lt$matmul"
  ROOT %t = (s32[], f32[8]{0}) tuple(%i, %y)
}

%outer (arg.1: (s32[], f32[8])) -> (s32[], f32[8]) {
  %arg.1 = (s32[], f32[8]{0}) parameter(0)
  %n = f32[8]{0} fusion(%arg.1), kind=kLoop, calls=%fused_add
  ROOT %w = (s32[], f32[8]{0}) while(%arg.1), condition=%c, body=%inner, \
backend_config={"known_trip_count":{"n":"5"},"known_init_step":{"init":"0","step":"1"}}
}

%one (x.2: f32[8]) -> f32[8] {
  ROOT %c.2 = f32[8]{0} copy(%x.2)
}

ENTRY %main (x.1: f32[8]) -> f32[8] {
  %x.1 = f32[8]{0} parameter(0)
  %b = f32[8]{0} bitcast(%x.1)
  %w.1 = (s32[], f32[8]{0}) while(%t.1), condition=%c, body=%outer, \
backend_config={"known_trip_count":{"n":"3"}}
  %call = f32[8]{0} call(%b), to_apply=%one
  %cond = f32[8]{0} conditional(%p, %b, %b), true_computation=%inner, false_computation=%one
  %s = ((f32[8]{0}), f32[8]{0}) async-start(%b), calls=%one
  %d = f32[8]{0} async-done(%s)
  ROOT %f.1 = f32[8]{0} fusion(%b), kind=kLoop, calls=%fused_add
}
"""


def test_loops_count_as_often_as_they_run():
    # 3 turns of 1 + 5 turns of 2, a call of 1, the larger branch of 2, one begun apart, a fusion.
    assert launches(PROGRAM) == 3 * (1 + 5 * 2) + 1 + 2 + 1 + 1
    assert operations(PROGRAM)["__cublas$lt$matmul"] == 1


def test_a_loop_of_unknown_length_is_refused():
    with pytest.raises(ValueError, match="a loop without a known count: %w"):
        launches(PROGRAM.replace("known_trip_count", "other"))
