"""The closed-form choice of tiles, splits and stages: always legal, and free of the batch where that is promised."""

from __future__ import annotations

import pytest

from tests.cuda import emulated
from vllm_quant_kernels.cuda.library import Linear
from vllm_quant_kernels.cuda.native import MAX_WORKSPACE, row_chunks

BF16, F32, U8, NONE = 1, 0, 3, 4
SHAPES = [(1024, 4096), (8192, 8192), (28672, 8192), (8192, 28672), (57344, 8192), (1280, 1024), (16, 64), (100, 777)]


def linear_call(
    m: int, n: int, k: int, kind: int = 4, group_size: int = 128, zeros: int = NONE, **fields: int
) -> Linear:
    padded = -(-k // 64) * 64
    groups = -(-padded // group_size)
    return Linear(
        m=m, n=n, k=k, k_padded=padded, x_stride=k, groups=groups, group_size=group_size, kind=kind, x_dtype=BF16,
        scale_dtype=fields.pop("scale_dtype", BF16), zeros=None if zeros == NONE else 1 << 12, zero_dtype=zeros,
        bias_dtype=NONE, **fields,
    )  # fmt: skip


@pytest.mark.parametrize("gpu", emulated.GPUS)
@pytest.mark.parametrize("kind", [2, 3, 4, 7, 8, 9])
def test_every_plan_fits_the_device(gpu: str, kind: int) -> None:
    device = emulated.GPUS[gpu]
    for n, k in SHAPES:
        for m in (1, 9, 33, 65, 100_000):
            for group_size in (16, 64, 128):
                for zeros in (NONE,) if kind == 9 else (NONE, U8, F32):
                    call = linear_call(m, n, k, kind, group_size, zeros, scale_dtype=F32)
                    plan = emulated.make_plan(call, device)
                    assert plan.shared_bytes <= device.smem_per_cta
                    assert plan.stages in (2, 3, 4, 8)
                    assert plan.stages * plan.stage_bytes <= plan.shared_bytes
                    assert plan.tokens * (128 + 4) * 4 <= plan.shared_bytes
                    assert plan.stage_bytes % 16 == 0
                    assert plan.m_tiles * plan.tokens >= m > (plan.m_tiles - 1) * plan.tokens
                    assert plan.n_tiles * 128 >= n > (plan.n_tiles - 1) * 128
                    assert 1 <= plan.splits <= min(8, -(-call.k_padded // 128))
                    second_pass = plan.splits > 1 and not device.clusters
                    size = plan.splits * plan.m_tiles * plan.tokens * n * 4
                    assert plan.workspace_bytes == (size if second_pass else 0)


@pytest.mark.parametrize("gpu", emulated.GPUS)
def test_splits_do_not_depend_on_the_batch_where_that_is_promised(gpu: str) -> None:
    for kind in (2, 4, 8):
        for n, k in SHAPES:
            plans = [
                emulated.make_plan(linear_call(m, n, k, kind, batch_invariant=1), emulated.GPUS[gpu])
                for m in (1, 8, 9, 30, 64, 500, 5000)
            ]
            assert len({plan.splits for plan in plans}) == 1


def test_large_batches_take_warpgroups_where_they_are_compiled() -> None:
    for n, k in ((8192, 8192), (4096, 14336)):
        assert emulated.make_plan(linear_call(4096, n, k), emulated.H200).tokens == 128
        assert emulated.make_plan(linear_call(4096, n, k, group_size=1 << 20), emulated.H200).tokens == 256
        assert emulated.make_plan(linear_call(64, n, k), emulated.H200).tokens == 64
        assert emulated.make_plan(linear_call(4096, n, k), emulated.A100).tokens == 64
        for fields in ({"batch_invariant": 1}, {"group_size": 16}):
            assert emulated.make_plan(linear_call(4096, n, k, **fields), emulated.H200).tokens == 64
    assert emulated.make_plan(linear_call(4096, 8192, 8192, zeros=F32), emulated.H200).tokens == 16
    with pytest.raises(ValueError, match="layout"):
        emulated.make_plan(linear_call(4096, 8192, 8192), emulated.A100, tokens=128)
    with pytest.raises(ValueError, match="layout"):
        emulated.make_plan(linear_call(4096, 8192, 8192), emulated.H200, tokens=256)


def test_only_hopper_code_starts_early() -> None:
    for gpu, device in emulated.GPUS.items():
        for wanted in (0, 1):
            plan = emulated.make_plan(linear_call(1, 4096, 4096, dependent=wanted), device)
            assert plan.dependent == int(gpu == "h200" and wanted)


def test_decode_fills_an_h200_and_prefill_is_not_split() -> None:
    for n, k in ((8192, 8192), (1024, 4096), (4096, 14336)):
        plan = emulated.make_plan(linear_call(1, n, k), emulated.H200)
        assert plan.n_tiles * plan.splits >= min(132, plan.n_tiles * 8)
    assert emulated.make_plan(linear_call(4096, 8192, 8192), emulated.H200).splits == 1


def test_no_sm_has_much_more_work_than_with_the_best_split() -> None:
    """Layers of Llama-3 at M = 1 on 132 SMs: 160 CTAs would leave 104 SMs half idle."""
    for n, k in ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (10240, 8192), (8192, 28672), (57344, 8192)):
        plan = emulated.make_plan(linear_call(1, n, k), emulated.H200)

        def most(splits: int, n_tiles: int = plan.n_tiles, k_tiles: int = k // 128) -> int:
            return -(-n_tiles * splits // 132) * -(-k_tiles // splits)

        assert most(plan.splits) <= 1.25 * min(most(splits) for splits in range(1, 9))


def test_clusters_that_do_not_fit_the_groups_of_sms_are_not_chosen() -> None:
    """Tiles of 64 rows, one CTA per SM: 20 clusters of 6 are 120 CTAs, but only two fit on a group of 16 SMs."""
    for n, k in ((2560, 8192), (2048, 8192), (8192, 8192), (4096, 14336)):
        plan = emulated.make_plan(linear_call(64, n, k), emulated.H200)
        assert plan.clustered == (plan.splits > 1)
        assert plan.n_tiles <= 16 // plan.splits * (132 / 16)


def test_tiles_of_64_rows_take_the_shared_memory_that_no_second_cta_can_use() -> None:
    """Bytes of weights in flight: an H200 needs about 32 KB per SM to reach its copy bandwidth."""
    for kind in (4, 6, 8, 9):
        plan = emulated.make_plan(linear_call(64, 8192, 8192, kind), emulated.H200)
        assert plan.tokens == 64
        assert (plan.stages - 1) * 2048 * min(kind, 8) >= 32 << 10


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"k_padded": 100}, "layout"),
        ({"groups": 7}, "layout"),
        ({"group_size": 96}, "layout"),
        ({"m": -1}, "layout"),
        ({"kind": 10}, "dtypes"),
        ({"x_dtype": F32}, "dtypes"),
        ({"scale_dtype": U8}, "dtypes"),
        ({"zeros": 1 << 12, "zero_dtype": BF16}, "dtypes"),
        ({"data": 8}, "aligned"),
    ],
)
def test_calls_that_no_kernel_can_run_are_refused(fields: dict[str, int], message: str) -> None:
    call = linear_call(4, 64, 256)
    for name, value in fields.items():
        setattr(call, name, value)
    with pytest.raises(ValueError, match=message):
        emulated.make_plan(call, emulated.H200)


def test_large_workspaces_are_cut_into_runs_of_rows() -> None:
    assert row_chunks(7, 0) == [slice(0, 7)]
    call = linear_call(10_000, 28672, 8192, batch_invariant=1)
    needed = emulated.make_plan(call, emulated.A100).workspace_bytes
    assert needed > MAX_WORKSPACE
    chunks = row_chunks(10_000, needed)
    assert [chunk.start for chunk in chunks[1:]] == [chunk.stop for chunk in chunks[:-1]]
    assert (chunks[0].start, chunks[-1].stop) == (0, 10_000)
    call.m = max(chunk.stop - chunk.start for chunk in chunks)
    assert emulated.make_plan(call, emulated.A100).workspace_bytes <= MAX_WORKSPACE
