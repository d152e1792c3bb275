"""From a call to its launch: arguments, the tuner, CUDA graphs, compiling ahead."""

from __future__ import annotations

import contextlib
import functools
import re

import gemm_ladder as gl
import numpy as np
import pytest
import torch
from cases import place
from families import DENSE, DEVICE, check_contiguous
from gemm_ladder import launch
from gemm_ladder.arguments import KINDS, SCALE_BLOCK, GemmArgs, GroupedArgs
from gemm_ladder.build import job
from gemm_ladder.errors import InputError, LaunchError
from gemm_ladder.lab.operands import normal
from gemm_ladder.lab.surroundings import UNWRITTEN
from gemm_ladder.measure import pool
from gemm_ladder.production import choice, fast_path, launching, tuner
from gemm_ladder.production.config import Config
from gemm_ladder.ref import metrics
from grouped_cases import contiguous, masked


@pytest.mark.parametrize("current", [0, 1])
def test_where_a_kernel_is_queued(current: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the current stream of the tensors' device, which is made the current one only where it is not."""
    entered, streams, gpu = [], [], torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current)
    monkeypatch.setattr(
        torch.cuda, "device", lambda device: entered.append(device) or contextlib.nullcontext()
    )
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: 100 + index, raising=False)

    def entry(address: int) -> bytes | None:
        streams.append(GroupedArgs.from_address(address).stream)
        return b"no such luck" if len(streams) > 1 else None

    launch.start("it", entry, GroupedArgs(), gpu)
    with pytest.raises(LaunchError, match=r"^it: no such luck$"):
        launch.start("it", entry, GroupedArgs(), gpu)
    assert streams == [101, 101] and entered == [gpu, gpu] * (current == 0)


def test_arguments_are_those_in_cpp():
    text = (job.KERNELS / "include" / "args.cuh").read_text()
    fields = re.findall(r"^    (?:const )?\w+[ *]+([\w, ]+);", text, re.M)
    names = [name for line in fields for name in line.split(", ")]
    ours = (*GemmArgs._fields_, *GroupedArgs._fields_)
    assert names == [name for name, _ in ours]


def test_constants_are_those_in_cpp():
    """The scale block, and the kinds in their order, stand in Python and in C++."""
    layout = (job.KERNELS / "include" / "layout.cuh").read_text()
    for name in ("kScaleK", "kScaleN"):
        assert int(re.search(rf"constexpr int {name} = (\d+);", layout)[1]) == SCALE_BLOCK
    kinds = re.search(
        r"enum class Kind \{(.*?)\};", (job.KERNELS / "production" / "config.cuh").read_text(), re.S
    )
    assert re.findall(r"^\s*k(\w+),", kinds[1], re.M) == [kind.capitalize() for kind in KINDS]
    queued = re.search(r"enum Kind : int64_t \{(.*?)\};", fast_path.SOURCE.read_text())
    assert re.findall(r"k(\w+)", queued[1]) == [kind.capitalize() for kind in KINDS]


def test_another_n_is_refused():
    placed = place(normal(np.random.default_rng(1), 5, 64, 384))
    with pytest.raises(
        InputError, match="n is 64 and k is 384; 328 and 384, the configuration's, are needed"
    ):
        launching.launch(DENSE[0], placed.lhs, placed.rhs, placed.out)
    assert placed.untouched()


@pytest.mark.parametrize("kind", ["dense", "contiguous", "masked"])
def test_what_the_tuner_measures(kind, machine):
    """Its operands make valid calls; a right result counts as right, and one wrong row as wrong."""
    product = tuner.product_for(kind, 200, 72, 256, 3 if kind != "dense" else 1)
    operands = pool.Pool([product], torch.device(DEVICE[machine]), bf16=False).operands(product)
    config = Config.of(kind, 72, 256, 64, 48)
    out, expected = operands.output(), pool.references(operands)
    launching.launch(config, operands.lhs, operands.rhs, out, operands.rows)
    assert pool.errors(operands.results(out), expected).right
    operands.results(out)[-1][-1] = 0
    assert not pool.errors(operands.results(out), expected).right


def api_call(kind: str, m: int, n: int, k: int, groups: int) -> tuple:
    """(run, check, out): a call of the public API on the GPU, a check of its result, and its output."""
    if kind == "dense":
        operands = normal(np.random.default_rng(m), m, n, k)
        placed = place(operands, "cuda")

        def check() -> None:
            values = (placed.bits().astype(np.uint32) << 16).view(np.float32)
            assert metrics.max_row_error(values, operands.exact()) < 1e-2

        return lambda: gl.fp8_gemm_nt(placed.lhs, placed.rhs, placed.out), check, placed.out
    counts = [m // 2 + 3 * group for group in range(groups)]
    if kind == "masked":
        call = masked(counts, m + 3 * groups, n, k, "cuda")
        run = functools.partial(gl.m_grouped_fp8_gemm_nt_masked, call.lhs, call.rhs, call.out, call.rows, m)
        return run, lambda: call.check(exact=False), call.out
    call = contiguous(counts, n, k, "cuda", padding=1)
    run = functools.partial(gl.m_grouped_fp8_gemm_nt_contiguous, call.lhs, call.rhs, call.out, call.rows)
    return run, lambda: check_contiguous(call), call.out


GROUPED = [("dense", 1), ("contiguous", 3), ("masked", 3)]


@pytest.mark.gpu
@pytest.mark.parametrize(("kind", "groups"), GROUPED)
def test_api_on_a_gpu(kind, groups):
    for m in (1, 64, 100, 700):
        run, check, _ = api_call(kind, m, 2112, 1024, groups)
        run()
        check()


@pytest.mark.gpu
@pytest.mark.parametrize(("kind", "groups"), GROUPED)
def test_capture(kind, groups):
    """A call whose kernel is not loaded is refused, and told of precompile; after that it can be captured."""
    n, k, m = 2112 + 8 * len(kind), 512, 100
    run, check, out = api_call(kind, m, n, k, groups)
    remedy = rf"gemm_ladder\.precompile\(n={n}, k={k}, .*kind='{kind}'\)"
    with pytest.raises(LaunchError, match=remedy), torch.cuda.graph(torch.cuda.CUDAGraph()):
        run()
    assert gl.precompile(n, k, groups=groups, max_m=1024, kind=kind)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    for _ in range(2):
        out.view(torch.int16).fill_(UNWRITTEN)
        graph.replay()
        torch.cuda.synchronize()
        check()


@pytest.mark.gpu
def test_precompile_is_enough():
    """After precompile, no call with a smaller m compiles anything."""
    assert len(gl.precompile(1536, 768, max_m=2048)) <= choice.MOST_KERNELS
    before = len(launching._libraries)
    for m in (1, 63, 64, 65, 200, 1000, 2048):
        run, check, _ = api_call("dense", m, 1536, 768, 1)
        run()
        check()
    assert len(launching._libraries) == before


@pytest.mark.gpu
def test_set_num_sms():
    gl.set_num_sms(20)
    try:
        run, check, _ = api_call("masked", 300, 1024, 512, 4)
        run()
        check()
    finally:
        gl.set_num_sms(0)


@pytest.mark.gpu
@pytest.mark.slow
def test_tune(monkeypatch, tmp_path):
    """The result is kept, and is what the next call runs."""
    from gemm_ladder.production import tuned

    monkeypatch.setenv("GEMM_LADDER_CACHE", str(tmp_path))
    tuned._table.cache_clear()
    results = gl.tune("dense", 100, 2112, 1024, limit=4)
    assert [one.us for one in results] == sorted(one.us for one in results) and len(results) >= 4
    assert all(len(one.by_state) == 3 and min(one.by_state) > 0 for one in results)
    clean = gl.tune("dense", 100, 2112, 1024, limit=2, states=("clean",))
    assert all(one.us == pytest.approx(one.by_state[1]) for one in clean)
    results = gl.tune("dense", 100, 2112, 1024, among=[one.config for one in results])
    sms = torch.cuda.get_device_properties(0).multi_processor_count
    arguments = ("dense", 100, 2112, 1024, 1, None, sms, torch.cuda.get_device_name(0))
    assert launching.configuration(*arguments) == results[0].config
    monkeypatch.undo()
    tuned._table.cache_clear()
