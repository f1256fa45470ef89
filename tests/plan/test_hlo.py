"""Collectives and traffic of programs compiled for eight devices, against bytes counted by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jax_rele.plan.hlo import collectives, parse, trip_count
from jax_rele.plan.traffic import traffic

P = PartitionSpec
ROWS, COLUMNS = 64, 32
BYTES = ROWS * COLUMNS * 4


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)


@pytest.fixture(scope="module")
def compiled(mesh):
    """Compiles a function of one [ROWS, COLUMNS] float32 array, or of arrays of the given shapes."""

    def compile_(function, *specs, out=None, shapes=None):
        shapes = shapes or [(ROWS, COLUMNS)] * len(specs)
        arguments = [
            jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
            for shape, spec in zip(shapes, specs)
        ]
        out = {} if out is None else {"out_shardings": NamedSharding(mesh, out)}
        with jax.set_mesh(mesh):
            return jax.jit(function, **out).lower(*arguments).compile().as_text()

    return compile_


def only(results):
    assert len(results) == 1, results
    return results[0]


def test_an_all_reduce(compiled):
    op = only(collectives(compiled(lambda x: x.sum(axis=0), P(("a", "b")), out=P())))
    assert (op.kind, op.bytes, op.group, op.count) == ("all-reduce", COLUMNS * 4, 8, 1)
    assert op.moved == 2 * 7 / 8 * COLUMNS * 4
    assert "reduce_sum" in op.source


def test_an_all_gather_over_one_axis(compiled):
    op = only(collectives(compiled(lambda x: x * 2, P("a", "b"), out=P("a"))))
    # Every chip ends with all columns of its rows.
    assert (op.kind, op.bytes, op.group, op.count) == ("all-gather", BYTES // 4, 2, 1)
    assert op.moved == BYTES / 4 / 2


def test_an_all_to_all(compiled):
    op = only(collectives(compiled(lambda x: x * 2, P("a"), out=P(None, "a"))))
    assert (op.kind, op.group, op.count) == ("all-to-all", 4, 1)
    assert op.bytes == BYTES // 4
    assert op.moved == BYTES / 4 * 3 / 4


def test_a_collective_permute(mesh, compiled):
    @partial(jax.shard_map, mesh=mesh, in_specs=P("a"), out_specs=P("a"))
    def turn(x):
        return jax.lax.ppermute(x, "a", [(chip, (chip + 1) % 4) for chip in range(4)])

    op = only(collectives(compiled(turn, P("a"))))
    assert (op.kind, op.bytes, op.group, op.count) == ("collective-permute", BYTES // 4, 4, 1)
    assert op.moved == BYTES / 4


def test_a_reduce_scatter(mesh, compiled):
    @partial(jax.shard_map, mesh=mesh, in_specs=P(None, "b"), out_specs=P("a", "b"), check_vma=False)
    def scatter(x):
        return jax.lax.psum_scatter(x, "a", scatter_dimension=0, tiled=True)

    op = only(collectives(compiled(scatter, P(None, "b"))))
    assert (op.kind, op.bytes, op.group, op.count) == ("reduce-scatter", BYTES // 2, 4, 1)
    assert op.moved == BYTES / 2 * 3 / 4


def test_a_loop_counts_as_often_as_it_runs_and_nested_ones_multiply(mesh, compiled):
    @partial(jax.shard_map, mesh=mesh, in_specs=P("a"), out_specs=P("a"), check_vma=False)
    def nested(x):
        def inner(x, _):
            return jnp.tanh(jax.lax.psum(x, "a")), None

        def outer(x, _):
            return jax.lax.scan(inner, x, None, length=3)[0] * 2, None

        return jax.lax.scan(outer, x, None, length=5)[0]

    op = only(collectives(compiled(nested, P("a"))))
    assert (op.kind, op.bytes, op.group, op.count) == ("all-reduce", BYTES // 4, 4, 15)


def test_one_device_sends_nothing(compiled):
    assert collectives(compiled(lambda x: x.sum(axis=0), P())) == []


def test_what_the_compiler_widened_counts_by_half(mesh):
    def total(x):
        return jax.lax.with_sharding_constraint(x * 2, NamedSharding(mesh, P()))

    x = jax.ShapeDtypeStruct((ROWS, COLUMNS), jnp.float32, sharding=NamedSharding(mesh, P("a")))
    text = jax.jit(total).lower(x).compile().as_text()
    assert only(collectives(text)).bytes == BYTES
    assert only(collectives(text, widened=True)).bytes == BYTES // 2


# ---- forms that only the TPU compiler writes

TPU = """HloModule jit_f, is_scheduled=true, num_partitions=16

%gather_piece.1 (param_0.1: bf16[8,16]) -> bf16[128,16] {
  %param_0.1 = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.1 = bf16[128,16]{1,0:T(8,128)(2,1)} all-gather(%param_0.1), channel_id=5, replica_groups=[1,16]<=[16], dimensions={0}, frontend_attributes={chain_id="1"}, metadata={op_name="jit(f)/dot"}
}

%gather_piece.2 (param_0.2: bf16[8,16]) -> bf16[128,16] {
  %param_0.2 = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.2 = bf16[128,16]{1,0:T(8,128)(2,1)} all-gather(%param_0.2), channel_id=5, replica_groups=[1,16]<=[16], dimensions={0}, frontend_attributes={chain_id="1"}, metadata={op_name="jit(f)/dot"}
}

%all-reduce-scatter.3 (param_0.3: f32[64]) -> f32[16] {
  %param_0.3 = f32[64]{0} parameter(0)
  %all-reduce.3 = f32[64]{0} all-reduce(%param_0.3), channel_id=6, replica_groups=mesh['x'=4,'y'=4] {'y'}, to_apply=%add
  %constant.3 = s32[] constant(0)
  ROOT %dynamic-slice.3 = f32[16]{0} dynamic-slice(%all-reduce.3, %constant.3), dynamic_slice_sizes={16}
}

%condition (state.c: (u32[], bf16[8,16], bf16[128,16])) -> pred[] {
  %state.c = (u32[]{:T(128)}, bf16[8,16]{1,0}, /*index=2*/bf16[128,16]{1,0}) parameter(0)
  %counter.c = u32[]{:T(128)} get-tuple-element(%state.c), index=0
  %end = u32[]{:T(128)} constant(8)
  ROOT %compare = pred[]{:T(512)} compare(%counter.c, %end), direction=LT
}

%body (state.b: (u32[], bf16[8,16], bf16[128,16])) -> (u32[], bf16[8,16], bf16[128,16]) {
  %state.b = (u32[]{:T(128)}, bf16[8,16]{1,0}, /*index=2*/bf16[128,16]{1,0}) parameter(0)
  %counter.b = u32[]{:T(128)} get-tuple-element(%state.b), index=0
  %two = u32[]{:T(128)} constant(2)
  %next = u32[]{:T(128)} add(%two, %counter.b)
  %chunk = bf16[8,16]{1,0} get-tuple-element(%state.b), index=1
  %whole = bf16[128,16]{1,0} get-tuple-element(%state.b), index=2
  %permute-start = (bf16[8,16]{1,0}, bf16[8,16]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%chunk), channel_id=7, source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
  %piece.2 = bf16[128,16]{1,0} fusion(%chunk), kind=kCustom, calls=%gather_piece.2
  %permute-done = bf16[8,16]{1,0} collective-permute-done(%permute-start)
  ROOT %state.n = (u32[]{:T(128)}, bf16[8,16]{1,0}, bf16[128,16]{1,0}) tuple(%next, %permute-done, %whole)
}

ENTRY %main (x: bf16[8,16], y: f32[64]) -> bf16[128,16] {
  %x = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(0)
  %y = f32[64]{0} parameter(1)
  %piece.1 = bf16[128,16]{1,0} fusion(%x), kind=kCustom, calls=%gather_piece.1
  %scattered = f32[16]{0} fusion(%y), kind=kCustom, calls=%all-reduce-scatter.3
  %zero = u32[]{:T(128)} constant(0)
  %state = (u32[]{:T(128)}, bf16[8,16]{1,0}, bf16[128,16]{1,0}) tuple(%zero, %x, %piece.1)
  %while = (u32[]{:T(128)}, bf16[8,16]{1,0}, bf16[128,16]{1,0}) while(%state), condition=%condition, body=%body
  %copy-start = (bf16[8,16]{1,0:S(1)}, bf16[8,16]{1,0}, u32[]{:S(2)}) copy-start(%x)
  %copy-done = bf16[8,16]{1,0:S(1)} copy-done(%copy-start)
  %doubled = bf16[8,16]{1,0:S(1)} add(%copy-done, %copy-done)
  ROOT %result = bf16[128,16]{1,0} get-tuple-element(%while), index=2
}
"""  # noqa: E501


def test_rounds_that_the_compiler_put_into_one_are_told_by_the_counters_step():
    module = parse(TPU)
    loop = module.computations["main"].instructions["while"]
    assert trip_count(module, loop) == 4
    assert (module.entry, module.partitions) == ("main", 16)


def test_pieces_of_a_collective_and_asynchronous_forms_count_once():
    by_kind = {x.kind: x for x in collectives(TPU)}
    assert len(by_kind) == len(collectives(TPU)) == 3
    gather, scatter, permute = (by_kind[kind] for kind in ("all-gather", "reduce-scatter", "collective-permute"))
    assert (gather.bytes, gather.group, gather.count) == (128 * 16 * 2, 16, 1)
    assert (scatter.bytes, scatter.group, scatter.count) == (64 * 4, 4, 1)
    assert (permute.bytes, permute.group, permute.count) == (8 * 16 * 2, 4, 4)


def test_traffic_leaves_out_what_stays_in_a_cores_own_memory():
    chunk, whole = 8 * 16 * 2, 128 * 16 * 2
    gather = chunk + whole
    scatter = 64 * 4 + 64 * 4 + 16 * 4  # in, what is reduced, and the slice of it
    counter = 4 * (3 * 4) + 4 * (2 * 4 + 1)  # its addition and its comparison in each of four rounds
    # The permutation reads and writes its chunk, the copy reads its own, and the sum of what was copied is free.
    assert traffic(TPU) == gather + scatter + 4 * 2 * chunk + chunk + counter


SLICES = """HloModule jit_h, num_partitions=8

ENTRY %main (x: f32[64,16]) -> (f32[64,16], f32[128,16]) {
  %x = f32[64,16]{1,0} parameter(0)
  %token = token[] after-all()
  %all-reduce.1 = f32[64,16]{1,0} all-reduce(%x), channel_id=1, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  %send.1 = (f32[64,16]{1,0}, u32[], token[]) send(%all-reduce.1, %token), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_megascale_target="{1,2,3,4}x{0:7}",_xla_megascale_transfer_type="ALL_REDUCE"}, metadata={op_name="jit(h)/sum"}
  %recv.1 = (f32[64,16]{1,0}, u32[], token[]) recv(%token), channel_id=1, is_host_transfer=true, frontend_attributes={_xla_megascale_target="{1,2,3,4}x{0:7}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %sent.1 = token[] send-done(%send.1), channel_id=2, is_host_transfer=true
  %received.1 = (f32[64,16]{1,0}, token[]) recv-done(%recv.1), channel_id=1, is_host_transfer=true
  %send.2 = (f32[64,16]{1,0}, u32[], token[]) send(%x, %token), channel_id=3, is_host_transfer=true, frontend_attributes={_xla_megascale_target={{100000,300000},{100001,300001},{200000,400000},{200001,400001}},_xla_megascale_transfer_type="ALL_GATHER"}
  %send.3 = (f32[64,16]{1,0}, u32[], token[]) send(%x, %token), channel_id=4, is_host_transfer=true, frontend_attributes={_xla_megascale_target={{100000->300000},{300000->100000}},_xla_megascale_transfer_type="ONE_TO_ONE"}
  %send.4 = (f32[64,16]{1,0}, u32[], token[]) send(%x, %token), channel_id=5, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="other"}
  %sum = f32[64,16]{1,0} get-tuple-element(%received.1), index=0
  ROOT %result = (f32[64,16]{1,0}) tuple(%sum)
}
"""  # noqa: E501


def test_what_goes_between_slices_is_told_from_what_stays_in_one():
    size = 64 * 16 * 4
    assert [(x.kind, x.bytes, x.group, x.network, x.moved) for x in collectives(SLICES)] == [
        ("all-reduce", size, 8, False, 2 * 7 / 8 * size),
        ("all-reduce", size, 4, True, 2 * 3 / 4 * size),
        ("all-gather", 2 * size, 2, True, size),
        ("collective-permute", size, 2, True, size),
    ]
    # The all-reduce in the slice reads and writes, each send reads, and what arrives is written.
    assert traffic(SLICES) == (2 + 4 + 1) * size


# ---- traffic of real programs


def test_elementwise_work_reads_and_writes_once():
    x = jax.ShapeDtypeStruct((512, 512), jnp.float32)
    assert traffic(jax.jit(lambda x: jnp.tanh(x) * 2 + 1).lower(x).compile().as_text()) == 2 * 512 * 512 * 4


def test_a_loop_over_stacked_weights_reads_each_once():
    layers, width = 20, 128
    weights = jax.ShapeDtypeStruct((layers, width, width), jnp.float32)
    x = jax.ShapeDtypeStruct((1, width), jnp.float32)

    def loop(x, weights):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

    moved = traffic(jax.jit(loop).lower(x, weights).compile().as_text())
    stacked = layers * width * width * 4
    # A slice may be copied before it is multiplied; reading the whole stack in every round would be 20 times it.
    assert stacked <= moved < 4 * stacked


def test_a_loop_that_stacks_its_results_writes_each_once():
    rounds, width = 50, 4096
    x = jax.ShapeDtypeStruct((width,), jnp.float32)

    def loop(x):
        return jax.lax.scan(lambda x, _: (x + 1, x * 2), x, None, length=rounds)[1]

    moved = traffic(jax.jit(loop).lower(x).compile().as_text())
    one = width * 4
    assert rounds * one <= moved < 10 * rounds * one


UPDATES = """HloModule jit_g, num_partitions=1

%scattered (param_0.1: bf16[36,64], param_1.1: s32[4,1], param_2.1: bf16[4,64]) -> bf16[36,64] {
  %param_0.1 = bf16[36,64]{1,0} parameter(0)
  %param_1.1 = s32[4,1]{1,0} parameter(1)
  %param_2.1 = bf16[4,64]{1,0} parameter(2)
  ROOT %scatter.1 = bf16[36,64]{1,0} scatter(%param_0.1, %param_1.1, %param_2.1), to_apply=%add
}

%sliced (param_0.2: bf16[36,64], param_1.2: bf16[1,64], param_2.2: s32[]) -> bf16[36,64] {
  %param_0.2 = bf16[36,64]{1,0} parameter(0)
  %param_1.2 = bf16[1,64]{1,0} parameter(1)
  %param_2.2 = s32[] parameter(2)
  %update = bf16[1,64]{1,0} negate(%param_1.2)
  ROOT %dynamic-update-slice.2 = bf16[36,64]{1,0} dynamic-update-slice(%param_0.2, %update, %param_2.2, %param_2.2)
}

ENTRY %main (cache: bf16[36,64], rows: s32[4,1], new: bf16[4,64], one: bf16[1,64], at: s32[]) -> bf16[36,64] {
  %cache = bf16[36,64]{1,0} parameter(0)
  %rows = s32[4,1]{1,0} parameter(1)
  %new = bf16[4,64]{1,0} parameter(2)
  %one = bf16[1,64]{1,0} parameter(3)
  %at = s32[] parameter(4)
  %first = bf16[36,64]{1,0} fusion(%cache, %rows, %new), kind=kLoop, calls=%scattered
  ROOT %second = bf16[36,64]{1,0} fusion(%first, %one, %at), kind=kLoop, calls=%sliced
}
"""


def test_updates_in_place_count_what_they_change():
    scattered = 4 * 4 + 4 * 64 * 2 + 4 * 64 * 2  # the places and values that are read, and what is written
    # A dynamic index is read once for each axis, but is one operand.
    sliced = 64 * 2 + 4 + 64 * 2
    assert traffic(UPDATES) == scattered + sliced
