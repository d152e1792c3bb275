"""What callers of DeepGEMM pass: rows with gaps, short last K blocks, empty sizes, other scales, other names.
On the CPU, and on a GPU if there is one; test_production.py has the same for single configurations."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Iterator

import gemm_ladder as gl
import numpy as np
import pytest
import torch
from call_arguments import refusal
from cases import place
from gemm_ladder import checks, scales
from gemm_ladder.lab.operands import normal
from gemm_ladder.ref import gemm, metrics
from grouped_cases import MAX_ROW_ERROR, contiguous, masked, psum

Pair = tuple[torch.Tensor, torch.Tensor]
LEAVES = 7.0  # in rows and columns that no call writes


@pytest.fixture(autouse=True)
def default_alignment() -> Iterator[None]:
    yield
    gl.set_mk_alignment_for_contiguous_layout(128)


def operands(m: int, n: int, k: int, device: str) -> tuple[Pair, Pair, np.ndarray]:
    """Both pairs, and their product in float64."""
    made = normal(np.random.default_rng([m, n, k]), m, n, k)
    placed = place(made, device)
    return placed.lhs, placed.rhs, made.exact()


def output(m: int, n: int, device: str) -> torch.Tensor:
    return torch.full((m, n), LEAVES, dtype=torch.bfloat16, device=device)


def check(out: torch.Tensor, exact: np.ndarray) -> None:
    found = out.detach().float().cpu().numpy()
    assert metrics.max_row_error(found, exact) < MAX_ROW_ERROR


def with_gaps(tensor: torch.Tensor, by: int, fill: float) -> torch.Tensor:
    """The same matrix, or matrices, as the left columns of wider ones, whose other columns hold `fill`."""
    *rows, columns = tensor.shape
    wide = torch.full((*rows, columns + by), fill, device=tensor.device).to(tensor.dtype)
    wide[..., :columns] = tensor
    return wide[..., :columns]


@pytest.mark.parametrize("k", [16, 112, 144, 576, 2112])
@pytest.mark.parametrize(("m", "n"), [(1, 72), (130, 264)])
def test_a_short_last_k_block(m: int, n: int, k: int, device: str) -> None:
    lhs, rhs, exact = operands(m, n, k, device)
    out = output(m, n, device)
    gl.fp8_gemm_nt(lhs, rhs, out)
    check(out, exact)


@pytest.mark.parametrize("m", [1, 70, 300])
def test_rows_with_gaps(m: int, device: str) -> None:
    """What lies in the gaps is not read, and not written."""
    (a, sfa), (b, sfb), exact = operands(m, 136, 384, device)
    for by in ({"a": 16}, {"b": 48}, {"d": 8}, {"a": 512, "b": 16, "d": 24}):
        out = with_gaps(output(m, 136, device), by.get("d", 0), LEAVES)
        around = out.as_strided((m, out.stride(0)), (out.stride(0), 1))
        left = with_gaps(a, by.get("a", 0), float("nan")), sfa
        gl.fp8_gemm_nt(left, (with_gaps(b, by.get("b", 0), float("nan")), sfb), out)
        check(out, exact)
        assert (around[:, 136:] == LEAVES).all()


def test_grouped_rows_with_gaps(device: str) -> None:
    for kind, call in {
        "contiguous": contiguous([128, 60], 136, 384, device),
        "masked": masked([5, 0, 70], 70, 136, 384, device),
        "psum": psum([100, 3], 136, 384, device),
    }.items():
        a, b = (with_gaps(x, 16, float("nan")) for x in (call.lhs[0], call.rhs[0]))
        around = torch.full((*call.out.shape[:-1], 144), LEAVES, dtype=torch.bfloat16, device=device)
        out = around[..., :136]
        out.copy_(call.out)
        run(kind, (a, call.lhs[1]), (b, call.rhs[1]), out, call.rows)
        assert (around[..., 136:] == LEAVES).all()
        call.out.copy_(out)
        if kind == "contiguous":
            call.out[call.rows == -1] = 0
        call.check(exact=False)


def run(kind: str, lhs: Pair, rhs: Pair, out: torch.Tensor, rows: torch.Tensor) -> None:
    if kind == "masked":
        gl.m_grouped_fp8_gemm_nt_masked(lhs, rhs, out, rows, 64)
    else:
        gl.m_grouped_fp8_gemm_nt_contiguous(lhs, rhs, out, rows, use_psum_layout=kind == "psum")


REFUSED_STRIDES = {
    "overlapping": (
        lambda a: a[:1].expand(5, 256),
        "A has strides (0, 1); rows that do not overlap, at least 256 elements apart, are needed",
    ),
    "8_bytes": (
        lambda a: with_gaps(a, 8, 0),
        "A has strides (264, 1); rows that are a multiple of 16 bytes apart are needed",
    ),
    "columns": (
        lambda a: a.T.contiguous().T,
        "A has strides (1, 5); rows whose elements lie side by side (stride 1) are needed",
    ),
}


@pytest.mark.parametrize("name", REFUSED_STRIDES)
def test_strides_that_are_refused(name: str) -> None:
    change, message = REFUSED_STRIDES[name]
    (a, sfa), rhs, _ = operands(5, 136, 256, "cpu")
    out = output(5, 136, "cpu")
    assert refusal(gl.fp8_gemm_nt, (change(a), sfa), rhs, out) == message
    assert (out == LEAVES).all()


def test_groups_with_gaps_are_refused() -> None:
    call = masked([5, 6], 6, 136, 256)
    a = torch.cat([call.lhs[0].view(torch.uint8)] * 2, dim=1).view(torch.float8_e4m3fn)[:, :6]
    assert refusal(gl.m_grouped_fp8_gemm_nt_masked, (a, call.lhs[1]), call.rhs, call.out, call.rows, 6) == (
        "A has strides (3072, 256, 1); matrices that follow each other without a gap, a stride of 1536, are "
        "needed"
    )
    assert call.untouched()


def test_empty_sizes(device: str) -> None:
    lhs, rhs, _ = operands(5, 136, 256, device)
    out = output(5, 136, device)
    gl.fp8_gemm_nt(lhs, (rhs[0][:0], rhs[1][:0]), out[:, :0])
    gl.fp8_gemm_nt((lhs[0][:0], lhs[1][:0]), rhs, out[:0])
    assert (out == LEAVES).all()
    no_k = [(x[..., :0], s[..., :0]) for x, s in (lhs, rhs)]
    gl.fp8_gemm_nt(*no_k, out)
    assert not out.any()


def test_grouped_without_k(device: str) -> None:
    """Zeros wherever a product would be written, and nowhere else."""
    for kind, call in {
        "contiguous": contiguous([128, 60], 136, 256, device, padding=1),
        "masked": masked([5, 0, 70], 70, 136, 256, device),
        "psum": psum([100, 3, 0], 136, 256, device, behind=200),
    }.items():
        no_k = [(x[..., :0], s[..., :0]) for x, s in (call.lhs, call.rhs)]
        run(kind, *no_k, call.out, call.rows)
        call.expected[~np.isnan(call.expected)] = 0
        call.check(exact=True)


@pytest.mark.parametrize("alignment", [64, 128, 256])
@pytest.mark.parametrize("counts", [[100, 7, 0, 128, 1], [300], [0, 0, 3]], ids=str)
def test_psum_layout(alignment: int, counts: list[int], device: str) -> None:
    gl.set_mk_alignment_for_contiguous_layout(alignment)
    for hint in ({}, {"expected_m_for_psum_layout": 32}, {"ensure_zero_padding": False}):
        call = psum(counts, 136, 576, device, alignment, behind=130)
        gl.m_grouped_fp8_gemm_nt_contiguous(
            call.lhs, call.rhs, call.out, call.rows, use_psum_layout=True, **hint
        )
        call.check(exact=False)


def test_psum_layout_is_what_indices_say(device: str) -> None:
    """The same bits for the rows of groups, whichever layout names them."""
    call, indices = psum([100, 7, 128], 136, 384, device), torch.full((384,), -1, dtype=torch.int32)
    for group, (begin, end) in enumerate(((0, 100), (128, 135), (256, 384))):
        indices[begin:end] = group
    gl.m_grouped_fp8_gemm_nt_contiguous(call.lhs, call.rhs, call.out, call.rows, use_psum_layout=True)
    out = output(384, 136, device)
    gl.m_grouped_fp8_gemm_nt_contiguous(call.lhs, call.rhs, out, indices.to(device))
    rows = indices >= 0
    check(out[rows], call.out[rows].double().cpu().numpy())


def test_ends_that_are_refused() -> None:
    call = psum([100, 7], 136, 256)
    for ends, message in (
        ([100, 127], "grouped_layout[1] is 127; a row from 128, where group 1 begins, to m = 135 is needed"),
        ([-1, 128], "grouped_layout[0] is -1; a row from 0, where group 0 begins, to m = 135 is needed"),
        ([100, 136], "grouped_layout[1] is 136; a row from 128, where group 1 begins, to m = 135 is needed"),
    ):
        rows = torch.tensor(ends, dtype=torch.int32)
        found = refusal(
            gl.m_grouped_fp8_gemm_nt_contiguous, call.lhs, call.rhs, call.out, rows, use_psum_layout=True
        )
        assert found == message
    assert call.untouched()


@pytest.mark.parametrize("counts", [[100, 0, 64, 130], [3]], ids=str)
def test_groups_aligned_to_64(counts: list[int], device: str) -> None:
    gl.set_mk_alignment_for_contiguous_layout(64)
    call = contiguous(counts, 136, 384, device, padding=1, block=64)
    gl.m_grouped_fp8_gemm_nt_contiguous(call.lhs, call.rhs, call.out, call.rows)
    call.out[call.rows == -1] = 0
    call.check(exact=False)


def test_alignments() -> None:
    for alignment in (64, 128, 192, 512):
        gl.set_mk_alignment_for_contiguous_layout(alignment)
        assert gl.get_mk_alignment_for_contiguous_layout() == alignment
    for alignment in (0, 32, 100):
        assert refusal(gl.set_mk_alignment_for_contiguous_layout, alignment) == (
            f"an alignment of {alignment} rows is given; a multiple of 64 is needed"
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e8m0fnu])
def test_other_scales(dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are converted in every call, and a warning says so, once."""
    monkeypatch.setattr(scales, "_said", set())
    made = normal(np.random.default_rng(0), 5, 136, 256)
    placed = place(made, device)
    (a, sfa), (b, sfb) = placed.lhs, placed.rhs
    sfa, sfb = sfa.to(dtype), sfb.to(dtype)
    exact = gemm.dense(made.a, sfa.float().cpu().numpy(), made.b, sfb.float().cpu().numpy())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(2):
            gl.fp8_gemm_nt((a, sfa), (b, sfb), placed.out)
            check(placed.out, exact)
    name = str(dtype).removeprefix("torch.")
    assert [str(one.message) for one in said] == [
        f"sfa is {name}; it is converted to float32 in every call, unless sfa.float() is passed",
        f"sfb is {name}; it is converted to float32 in every call, unless sfb.float() is passed",
    ]


WRITES: dict[str, Callable[[torch.Tensor, torch.Tensor], object]] = {
    "copy_": lambda x, y: x.copy_(y),
    ".data.copy_": lambda x, y: x.data.copy_(y),
    ".data =": lambda x, y: setattr(x, "data", y),
    "set_": lambda x, y: x.set_(y),
    "swap_tensors": torch.utils.swap_tensors,
    "NumPy": lambda x, y: operator.setitem(
        x.view(torch.int16).cpu().numpy(), slice(None), y.view(torch.int16).cpu().numpy()
    ),
}


@pytest.mark.parametrize("write", WRITES)
def test_scales_of_a_new_checkpoint(write: str, device: str) -> None:
    """Loaders write weights in ways of which some leave no trace in the tensor's version."""
    if write == "NumPy" and device != "cpu":
        pytest.skip("NumPy has no memory of a GPU's")
    made = normal(np.random.default_rng(0), 5, 136, 256)
    placed = place(made, device)
    b, sfb = placed.rhs[0], placed.rhs[1].bfloat16()
    exact = gemm.dense(made.a, made.sfa, made.b, sfb.float().cpu().numpy())
    for factor in (1, 2, 4):
        WRITES[write](sfb, (placed.rhs[1].bfloat16().float() * factor).bfloat16())
        for _ in range(2):
            gl.fp8_gemm_nt(placed.lhs, (b, sfb), placed.out)
            check(placed.out, factor * exact)


def test_more_dimensions(device: str) -> None:
    """Activations [b, s, k]."""
    (a, sfa), rhs, exact = operands(12, 136, 256, device)
    out = output(12, 136, device).view(3, 4, 136)
    gl.fp8_gemm_nt((a.view(3, 4, 256), sfa.contiguous().view(3, 4, 2)), rhs, out)
    check(out.view(12, 136), exact)
    message = refusal(gl.fp8_gemm_nt, (a.view(3, 4, 256), sfa.contiguous().view(2, 6, 2)), rhs, out)
    assert message == (
        "A has shape [3, 4, 256], sfa [2, 6, 2] and out [3, 4, 136]; the same dimensions before the last one "
        "are needed"
    )
    apart = torch.empty(3, 8, 136, dtype=torch.bfloat16, device=device)[:, :4]
    message = refusal(gl.fp8_gemm_nt, (a.view(3, 4, 256), sfa.contiguous().view(3, 4, 2)), rhs, apart)
    assert message.endswith("leading dimensions that are one dimension of rows are needed")


def test_transposed_operands(device: str) -> None:
    (a, sfa), (b, sfb), exact = operands(5, 136, 256, device)
    transposed_a, transposed_b = (a.T, sfa.T), (b.T, sfb.T)
    calls: dict[str, tuple[Pair, Pair]] = {
        "nn": ((a, sfa), transposed_b),
        "tn": (transposed_a, transposed_b),
        "tt": (transposed_a, (b, sfb)),
    }
    for name, pairs in calls.items():
        for prefix in ("fp8", "fp8_fp4"):
            out = output(5, 136, device)
            getattr(gl, f"{prefix}_gemm_{name}")(*pairs, out, disable_ue8m0_cast=True)
            check(out, exact)
    call = contiguous([128, 60], 136, 384, device)
    rhs = (call.rhs[0].mT, call.rhs[1].mT)
    gl.m_grouped_fp8_gemm_nn_contiguous(call.lhs, rhs, call.out, m_indices=call.rows)
    call.out[call.rows == -1] = 0
    call.check(exact=False)
    assert refusal(gl.fp8_gemm_nn, (a, sfa), (b[0], sfb), output(5, 136, device)) == (
        "the matrix of b has shape [256]; at least 2 dimensions are needed"
    )


OPTIONS: dict[str, tuple[dict[str, object], str]] = {
    "alpha": (
        {"alpha": 0.5},
        "alpha is 0.5; 1 or None is needed: the product is not scaled as a whole on Hopper",
    ),
    "epilogue": ({"epilogue": "relu"}, "epilogue is given; None is needed: there are no epilogues on Hopper"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_for_other_gpus(name: str) -> None:
    options, message = OPTIONS[name]
    lhs, rhs, _ = operands(5, 136, 256, "cpu")
    out = output(5, 136, "cpu")
    assert refusal(gl.fp8_gemm_nt, lhs, rhs, out, **options) == message
    assert (out == LEAVES).all()
    gl.fp8_gemm_nt(lhs, rhs, out, alpha=1.0, epilogue=None)


@pytest.mark.parametrize(
    "options", [{"enable_overlap": True}, {"max_block_n": 256}, {"signal": torch.zeros(4)}]
)
def test_overlap_of_sglang(options: dict[str, object]) -> None:
    call = masked([5, 6], 6, 136, 256)
    assert refusal(
        gl.m_grouped_fp8_gemm_nt_masked, call.lhs, call.rhs, call.out, call.rows, 6, **options
    ) == (
        "enable_overlap, max_block_n or signal is given; False and None are needed: no kernel here "
        "says which of its tiles are done"
    )
    assert call.untouched()


def requiring(which: str, lhs: Pair, rhs: Pair) -> tuple[Pair, Pair]:
    names = {"A": lhs[0], "sfa": lhs[1], "B": rhs[0], "sfb": rhs[1]}
    names[which] = names[which].detach().requires_grad_()
    return (names["A"], names["sfa"]), (names["B"], names["sfb"])


@pytest.mark.parametrize("which", ["A", "sfa", "B", "sfb"])
def test_inputs_that_require_grad(which: str, device: str) -> None:
    """Nothing is silently left out of a backward pass, on the fast path neither."""
    lhs, rhs, exact = operands(5, 136, 256, device)
    out = output(5, 136, device)
    gl.fp8_gemm_nt(lhs, rhs, out)
    out.fill_(LEAVES)
    pairs = requiring(which, lhs, rhs)
    assert refusal(gl.fp8_gemm_nt, *pairs, out) == (
        f"{which} requires grad, which no kernel computes; {which}.detach(), or a call inside of "
        "torch.no_grad(), is needed"
    )
    assert (out == LEAVES).all()
    with torch.no_grad():
        gl.fp8_gemm_nt(*pairs, out)
    check(out, exact)


def test_writes_are_counted(device: str) -> None:
    """Autograd asks a saved tensor's version, and so finds that it was overwritten."""
    lhs, rhs, _ = operands(5, 136, 256, device)
    out = output(5, 136, device)
    for _ in range(3):  # the first call, and the fast path
        before = out._version
        gl.fp8_gemm_nt(lhs, rhs, out)
        assert out._version == before + 1


def test_inference_tensors(device: str) -> None:
    lhs, rhs, exact = operands(5, 136, 256, device)
    with torch.inference_mode():
        out = output(5, 136, device)
        for _ in range(2):
            gl.fp8_gemm_nt(lhs, rhs, out)
    check(out, exact)
    if device == "cpu":  # where torch writes it, which refuses to
        message = refusal(gl.fp8_gemm_nt, lhs, rhs, out)
        assert message.startswith("out is an inference tensor, which cannot be written outside")
    else:
        gl.fp8_gemm_nt(lhs, rhs, out)
        check(out, exact)


def test_general_operands_are_not_for_the_rungs() -> None:
    (a, sfa), rhs, _ = operands(5, 136, 256, "cpu")
    out = output(5, 136, "cpu")
    check_rung: Callable[..., object] = checks.operands
    assert refusal(check_rung, "dense", (with_gaps(a, 16, 0), sfa), rhs, out) == (
        "A has strides (272, 1); contiguous rows, strides (256, 1), are needed"
    )
