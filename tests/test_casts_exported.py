"""The casts in programs of torch.export and torch.compile that take any number of rows. Whether a size that
is rounded up is 1, and whether rows have padding, must be no condition of a program because it is so for the
example."""

from __future__ import annotations

import io
from collections.abc import Callable

import gemm_ladder as gl
import pytest
import torch
from gemm_ladder.casts import functions
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


def test_compile() -> None:
    function, columns = cast("per_channel_group_quant_fp8", {})
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="aot_eager", dynamic=True, fullgraph=True)
    for m in (20, 129):
        same(compiled, function, torch.randn(m, columns))


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
