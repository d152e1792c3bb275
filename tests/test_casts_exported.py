"""The casts in programs of torch.export and torch.compile that take tensors of any sizes. Whether a size that
is rounded up, or halved, is 1, and whether rows have padding, must be no condition of a program because it is
so for the example."""

from __future__ import annotations

import io
from collections.abc import Callable

import gemm_ladder as gl
import pytest
import torch
from gemm_ladder.casts import functions
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim

K = 136
ROWS = (0, 1, 2, 16, 20, 128, 129, 300)  # one run or several, with and without padding
CASTS = [
    pytest.param(name, options, id=name + "_as_it_is" * bool(options))
    for name in functions.__all__
    for options in ([{}, {"transposed": False}] if "channel" in name else [{}])
]


class Module(torch.nn.Module):
    """Calls a function."""

    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: torch.Tensor) -> object:
        return self.function(*tensors)


def exported(function: Callable[..., object], *example: torch.Tensor, sizes: object, strict: bool = False):
    """A program made from an example, for other sizes, too."""
    return torch.export.export(Module(function), example, dynamic_shapes=(sizes,), strict=strict)


def cast(name: str, options: dict[str, bool]) -> tuple[Callable[[torch.Tensor], object], int]:
    """A cast of x alone, and x's columns."""
    function = getattr(gl, name)
    others = (torch.ones(K),) if "rms_norm" in name else ()
    return lambda x: function(x, *others, **options), K * (2 if "silu" in name else 1)


def same(function: Callable[..., object], other: Callable[..., object], *given: torch.Tensor) -> None:
    """Whether codes and scales have the same numbers and strides."""
    for one, another in zip(function(*given), other(*given), strict=True):
        assert torch.equal(one.float(), another.float())
        assert one.stride() == another.stride()


@pytest.mark.parametrize(("name", "options"), CASTS)
def test_export(name: str, options: dict[str, bool]) -> None:
    function, columns = cast(name, options)
    program = exported(function, torch.randn(20, columns), sizes=({0: Dim("m", max=4096)},)).module()
    for m in ROWS:
        same(program, function, torch.randn(m, columns))


@pytest.mark.parametrize(("name", "options"), CASTS)
def test_export_with_groups(name: str, options: dict[str, bool]) -> None:
    """Rows or columns alone, and all together, from an example with one run of 128 in a row, whose scales are
    contiguous but for padding."""
    half, norm = (2 if "silu" in name else 1), "rms_norm" in name

    def function(x: torch.Tensor, *weight: torch.Tensor) -> object:
        return getattr(gl, name)(x, *weight, **options)

    def tensors(*shape: int) -> tuple[torch.Tensor, ...]:
        x = torch.randn(*shape[:-1], shape[-1] * half)
        return (x, torch.randn(shape[-1])) if norm else (x,)

    example = (2, 20, 128)
    for dynamic in ((0, 1, 2),) if norm else ((1,), (2,), (0, 1, 2)):
        dims = {at: Dim("k") * half if at == 2 and half > 1 else Dim("gmk"[at]) for at in dynamic}
        sizes = (dims, {0: dims[2]}) if norm else (dims,)
        given = tensors(*example)
        program = torch.export.export(Module(function), given, dynamic_shapes=(sizes,)).module()
        for others in ((1, 1, 1), (3, 21, 129), (0, 4, 6)):
            shape = [others[at] if at in dims else example[at] for at in range(3)]
            same(program, function, *tensors(*shape))


@pytest.mark.parametrize("name", ["per_channel_group_quant_fp8", "rms_norm_per_channel_group_quant_fp8"])
def test_columns_of_a_matrix(name: str) -> None:
    """As it is, whose scales have padding along the columns."""
    given = [torch.randn(200, 20), *(torch.ones(20) for _ in range("rms_norm" in name))]

    def function(x: torch.Tensor, *weight: torch.Tensor) -> object:
        return getattr(gl, name)(x, *weight, transposed=False)

    k = Dim("k")
    sizes = ({1: k}, {0: k})[: len(given)]
    program = torch.export.export(Module(function), tuple(given), dynamic_shapes=(sizes,)).module()
    for columns in (1, 21, 24):
        same(program, function, torch.randn(200, columns), *(torch.ones(columns) for _ in given[1:]))


def test_odd_columns() -> None:
    """Which a program of any number of columns is not asked about before it runs."""
    function = gl.silu_and_mul_per_token_group_quant_fp8
    program = exported(function, torch.randn(20, 256), sizes=({1: Dim("k")},)).module()
    same(program, function, torch.randn(20, 2))
    with pytest.raises(gl.GemmLadderError, match=r"^x has 129 columns; an even number"):
        program(torch.randn(20, 129))


@pytest.mark.parametrize("strict", [False, True])
def test_multiples(strict: bool) -> None:
    """torch takes the m of 4 * Dim("m") to be 2 or more, and a program must not."""
    per_token, per_channel = gl.per_token_group_quant_fp8, gl.silu_and_mul_per_channel_group_quant_fp8
    sizes = ({0: Dim("groups"), 1: 4 * Dim("m")}, {0: Dim("groups")})

    def masked(x: torch.Tensor, counts: torch.Tensor) -> object:
        return per_token(x, masked_m=counts)

    def grouped(x: torch.Tensor, ks: torch.Tensor) -> object:
        return per_channel(x, ks=ks)

    counts = torch.tensor([20, 20], dtype=torch.int32)
    program = exported(masked, torch.randn(2, 20, 128), counts, sizes=sizes, strict=strict).module()
    for m in (4, 24):
        same(program, masked, torch.randn(1, m, 128), torch.tensor([m], dtype=torch.int32))
    silu = gl.silu_and_mul_per_token_group_quant_fp8
    given, ends = torch.randn(200, 2 * K), torch.tensor([20, 148], dtype=torch.int32)
    sizes = ({0: Dim("m"), 1: 2 * Dim("k")}, {0: Dim("groups")})
    program = exported(lambda x, of: silu(x, psum_m=of), given, ends, sizes=sizes, strict=strict).module()
    for m, k in ((1, 1), (21, 130)):  # all rows: the others are not defined
        end = torch.tensor([m], dtype=torch.int32)
        same(program, lambda x, of: silu(x, psum_m=of), torch.randn(m, 2 * k), end)
    sizes = ({0: 128 * Dim("m"), 1: 2 * Dim("k")}, {0: Dim("groups")})
    ks = torch.tensor([128, 128], dtype=torch.int32)
    program = exported(grouped, torch.randn(256, 2 * K), ks, sizes=sizes, strict=strict).module()
    for m, k in ((128, 1), (384, 130)):
        same(program, grouped, torch.randn(m, 2 * k), torch.tensor([m - 128, 128, 0], dtype=torch.int32))


def test_scales_of_groups() -> None:
    """get_mn_major_tma_aligned_tensor of one scale a row."""
    function = gl.get_mn_major_tma_aligned_tensor
    sizes = ({0: Dim("groups"), 1: Dim("m")},)
    program = exported(lambda sf: [function(sf)], torch.randn(2, 20, 1), sizes=sizes).module()
    for m in (1, 21, 24):
        same(program, lambda sf: [function(sf)], torch.randn(3, m, 1))


@pytest.mark.parametrize(("name", "shape"), [("per_channel", (K,)), ("per_token", (2, 128))])
def test_compile(name: str, shape: tuple[int, ...]) -> None:
    """An example's answer is a condition here, but no size is a constant."""
    function, _ = cast(f"{name}_group_quant_fp8", {})
    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled = torch.compile(function, backend=counter, dynamic=True, fullgraph=True)
    for m in (20, 129, 21, 24, 130, 256):
        same(compiled, function, torch.randn(*shape[:-1], m, shape[-1]))
    assert counter.frame_count <= 4


@pytest.mark.parametrize(("strict", "gran_k"), [(True, 32), (False, 128)])
@pytest.mark.parametrize("which", ["per_token", "per_block", "per_channel"])
def test_casts_of_utils(which: str, strict: bool, gran_k: int) -> None:
    """Which are an operator in a program, also where torch.compile would take them apart."""
    name = f"{which}_cast_to_fp8"

    def function(x: torch.Tensor) -> object:
        return getattr(gl.utils, name)(x, gran_k=gran_k)

    program = exported(function, torch.randn(20, K), sizes=({0: Dim("m")},), strict=strict)
    assert f"gemm_ladder.{name}.default" in [str(node.target) for node in program.graph.nodes]
    for m in ROWS:
        same(program.module(), function, torch.randn(m, K))


def test_other_sizes_and_ways() -> None:
    """Traced by Dynamo, with any number of groups and columns; decomposed, saved and loaded."""
    function = gl.per_channel_group_quant_fp8
    sizes = ({0: Dim("groups"), 1: Dim("m"), 2: Dim("k")},)
    program = exported(function, torch.randn(3, 20, K), sizes=sizes)
    saved = io.BytesIO()
    torch.export.save(program, saved)
    saved.seek(0)
    by_dynamo = exported(function, torch.randn(20, K), sizes=({0: Dim("m")},), strict=True)
    same(by_dynamo.module(), function, torch.randn(129, K))
    for one in (program, program.run_decompositions(), torch.export.load(saved)):
        again = one.module()
        for shape in ((1, 20, K), (2, 129, 3), (0, 5, 5)):
            same(again, function, torch.randn(shape))


def test_index_tensors() -> None:
    """`rows` and `ks`: the number of rows is another than x's; what the program was not asked is refused when
    it runs."""
    rows = torch.tensor([3, -1, 5], dtype=torch.int32)

    def gathered(x: torch.Tensor, rows: torch.Tensor) -> object:
        return gl.per_block_quant_fp8(x, rows=rows)

    program = exported(gathered, torch.randn(20, K), rows, sizes=({0: Dim("m")}, {0: Dim("picked")})).module()
    for m in (3, 200):
        same(program, gathered, torch.randn(m, K), torch.arange(-1, m, dtype=torch.int32))
    ks = torch.tensor([128, 0, 128], dtype=torch.int32)

    def grouped(x: torch.Tensor, ks: torch.Tensor) -> object:
        return gl.per_channel_group_quant_fp8(x, ks=ks)

    program = exported(grouped, torch.randn(256, K), ks, sizes=({0: Dim("m")}, None)).module()
    for blocks in (2, 3):
        same(
            program,
            grouped,
            torch.randn(128 * blocks, K),
            torch.tensor([128 * (blocks - 1), 0, 128], dtype=torch.int32),
        )
    with pytest.raises(gl.GemmLadderError, match=r"^there are 300 rows; with ks a multiple of 128"):
        program(torch.randn(300, K), ks)


def test_products_of_casts() -> None:
    """A linear layer and the gradient of its weight, for any number of tokens."""

    def products(x: torch.Tensor, w: torch.Tensor, dy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.empty(x.shape[0], w.shape[0], dtype=torch.bfloat16)
        gl.fp8_gemm_nt(gl.per_token_group_quant_fp8(x), gl.per_block_quant_fp8(w), y)
        dw = torch.empty(w.shape)
        pairs = gl.per_channel_group_quant_fp8(dy), gl.per_channel_group_quant_fp8(x)
        gl.fp8_gemm_nt(*pairs, dw, recipe=(1, 1, 128))
        return y, dw

    m = Dim("m")
    w = torch.randn(24, K * 2)
    program = exported(
        products, torch.randn(32, K * 2), w, torch.randn(32, 24), sizes=({0: 16 * m}, None, {0: 16 * m})
    ).module()
    for tokens in (16, 304):
        same(program, products, torch.randn(tokens, K * 2), w, torch.randn(tokens, 24))
