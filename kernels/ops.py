"""The products as operators of torch, `torch.ops.gemm_ladder`, for torch.compile, torch.export and profilers.

    fp8_gemm_nt(Tensor a, Tensor sfa, Tensor b, Tensor sfb, Tensor(a!) d) -> ()

An operator has a schema, which says that it writes d and nothing else; an implementation for the CPU, one for
GPUs, and one for tensors without memory (FakeTensor), which does nothing, since nothing is returned. The
functions of `gemm_ladder.api` do not go through torch's dispatcher, which takes longer than the call itself,
unless somebody wants to see the call: `seen`. The implementations for the CPU and for GPUs end in `run`, as
do these functions.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import ml_dtypes
import numpy as np
import torch
from gemm_ladder import checks, settings
from gemm_ladder.arguments import Kind, ceil_div
from gemm_ladder.checks import CheckedCall
from gemm_ladder.errors import InputError
from gemm_ladder.production import fast_path
from gemm_ladder.ref import gemm as reference
from torch._subclasses import FakeTensor

NAMES: dict[Kind, str] = {
    "dense": "fp8_gemm_nt",
    "contiguous": "m_grouped_fp8_gemm_nt_contiguous",
    "masked": "m_grouped_fp8_gemm_nt_masked",
    "psum": "m_grouped_fp8_gemm_nt_psum",
}
# Of every product, as a schema has them.
OPERANDS = "Tensor a, Tensor sfa, Tensor b, Tensor sfb, Tensor(a!) d"
_OTHER_ARGUMENTS: dict[Kind, str] = {
    "dense": "",
    "contiguous": ", Tensor m_indices",
    "masked": ", Tensor masked_m, SymInt expected_m",
    "psum": ", Tensor grouped_layout, SymInt expected_m",
}
_ARGUMENTS = {kind: 5 + others.count(",") for kind, others in _OTHER_ARGUMENTS.items()}  # how many
_library = torch.library.Library("gemm_ladder", "DEF")
_thread = threading.local()
# Answers False. Where torch.compile reads a call of it, it takes the answer to be True.
compiling = torch.compiler.is_dynamo_compiling
_modes = torch._C._len_torch_dispatch_stack
_profiled = torch._C._autograd._profiler_enabled
_traced = torch._C._get_tracing_state
transform = torch._C._functorch.peek_interpreter_stack  # the innermost of torch.func's, or None
_Result = TypeVar("_Result")
_PLAIN = frozenset((torch.Tensor, torch.nn.Parameter, type(None), bool, int, float))


def seen(*operands: object) -> bool:
    """Whether a call has to go through torch's dispatcher: a mode (FakeTensorMode, make_fx, FlopCounterMode),
    torch.jit.trace or a profiler wants to see it, or a tensor is of a class that computes for itself
    (FakeTensor, DTensor)."""
    watched = _modes() or _profiled() or _traced() is not None
    if not watched and _PLAIN.issuperset(map(type, operands)):
        return False  # as nearly always, and at once
    if any(map(checks.is_distributed, operands)):
        return False  # so that it is refused
    if not _modes():
        fake = [isinstance(one, FakeTensor) for one in operands if isinstance(one, torch.Tensor)]
        if any(fake):
            return all(fake)  # beside others they are refused
    return bool(watched) or any(map(_computes_for_itself, operands))


def in_mode() -> bool:
    """Whether a mode of torch's dispatcher, such as that of make_fx, sees the call."""
    return _modes() > 0


def exporting() -> bool:
    """Whether torch.export traces the call. Up to torch 2.11 torch.compile takes what torch.compiler says of
    it for true, but it reads this variable."""
    found: bool = torch.compiler._is_exporting_flag
    return found


def in_transform() -> bool:
    """Of a call that torch.compile traces: whether it is not to, as `checks.uncompiled` says."""
    from gemm_ladder.checks import uncompiled  # here: it imports torch's compiler

    # That dual numbers have no level is read where torch.compile sees it, and makes it a condition.
    return torch.autograd.forward_ad._current_level >= 0 or uncompiled.in_transform()


def run_uncompiled(function: Callable[..., _Result], *given: object) -> _Result:
    """Have torch.compile, which traces this, leave a call as it is."""
    from gemm_ladder.checks import uncompiled

    found: _Result = uncompiled.run(function, *given)
    return found


def in_eager(*operands: torch.Tensor | None) -> bool:
    """Whether a call may be done without torch's dispatcher, but for a profiler, which would not see it:
    torch neither compiles nor traces it, no mode sees it, the tensors are plain ones (`fast_path.is_plain`),
    and no derivatives but those of a backward pass are computed."""
    if compiling() or _modes() or _traced() is not None or transform() is not None:
        return False
    if torch.autograd.forward_ad._current_level >= 0:
        return False
    return all(one is None or fast_path.is_plain(one) for one in operands)


def direct(*operands: torch.Tensor | None) -> bool:
    """Whether a call with gradients may leave out torch's dispatcher, and its operators' rules for
    autograd."""
    return in_eager(*operands) and not _profiled()


def _computes_for_itself(operand: object) -> bool:
    disabled = torch._C._disabled_torch_dispatch_impl
    return getattr(type(operand), "__torch_dispatch__", disabled) is not disabled


def define(
    schema: str,
    function: Callable[..., Any],
    fake: Callable[..., Any],
    gradient: tuple[Callable[..., None], Callable[..., Any]] | None = None,
) -> None:
    """Register an operator that returns new tensors.

    Args:
        schema: its name, arguments and results, as torch writes them.
        function: computes it on any device.
        fake: the same for tensors without memory.
        gradient: what keeps tensors for the backward pass, and what computes it, as
            torch.library.register_autograd takes them.
    """
    name = schema.partition("(")[0]
    _declare(schema)
    _library.impl(name, function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"gemm_ladder::{name}", fake, lib=_library)
    if gradient is not None:
        keep, backward = gradient
        torch.library.register_autograd(f"gemm_ladder::{name}", backward, setup_context=keep, lib=_library)


def _declare(schema: str, tags: tuple[torch.Tag, ...] = ()) -> None:
    """Give an operator its schema. Torch first looks whether torch.ops has it, which must not import it."""
    _thread.defines = True
    try:
        _library.define(schema, tags=tags)
    finally:
        _thread.defines = False


def defining() -> bool:
    """Whether this thread is about to define an operator."""
    return getattr(_thread, "defines", False)


def define_product(schema: str, function: Callable[..., None]) -> None:
    """Register an operator that writes its argument d and returns nothing; arguments as for `define`."""
    name = schema.partition("(")[0]
    _declare(schema, (torch.Tag.needs_exact_strides,))
    for device in ("CPU", "CUDA"):
        _library.impl(name, function, device)
    operator = getattr(torch.ops.gemm_ladder, name).default
    names = [argument.name for argument in operator._schema.arguments]

    def fake(*given: object) -> None:
        named = zip(names, given, strict=False)
        _nothing({name: one for name, one in named if isinstance(one, torch.Tensor)})

    torch.library.register_fake(f"gemm_ladder::{name}", fake, lib=_library)


def symbolic_ceil_div(x: int, y: int) -> int:
    """x / y, rounded up, as a size or a stride of what an operator returns without memory.

    If x is a symbol, torch asks of each size whether it is 1, and of strides whether they are those of a
    contiguous tensor, and an example's answer becomes a condition: a program that torch.export makes from an
    x of 20 would take no x above y = 128. So torch.export gets a symbol that has no example, of which torch
    takes the answer to be no. Nothing is said of its value: torch would conclude from x that it is 2 or more
    where x is 128 * Dim("m"), as it takes m to be so, and the program would refuse 128. torch.compile knows
    only symbols of its inputs; it compiles again where an answer is another one.
    """
    if isinstance(x, int) or not exporting():
        return ceil_div(x, y)
    return torch.library.get_ctx().new_dynamic_size()


def _nothing(operands: dict[str, torch.Tensor]) -> None:
    """What an operator does where there is no memory: it refuses what could not be found out later.

    A real tensor beside one without memory would not be written. And what torch.compile makes runs without a
    history for autograd, so that it has to be asked for while it traces.
    """
    devices = {str(tensor.device): None for tensor in operands.values()}
    if len(devices) > 1:
        raise InputError(f"the tensors are on {' and '.join(devices)}; one device is needed for all")
    checks.no_gradients("d", operands)


def call(kind: Kind, *operands: object) -> None:
    """Call a product's operator.

    Args:
        operands: a, sfa, b, sfb, d, the tensor that says which rows belong to a group, and the expected m;
            those that the operator does not have are left out.
    """
    getattr(torch.ops.gemm_ladder, NAMES[kind])(*operands[: _ARGUMENTS[kind]])


def run(checked: CheckedCall, expected_m: int = 0) -> None:
    """Compute a checked call: on the CPU at once, on a GPU queued on the current stream of its device."""
    if not checked.m or not checked.n:
        return
    if checked.k and checked.out.is_cuda:
        if fast_path.launched(_queued(checked, expected_m)):
            return
        from gemm_ladder.production import launching  # here: a call on the CPU needs none of it

        torch.autograd.graph.increment_version(checked.out)
        launching.queue(checked, expected_m)
    elif checked.k:
        compute_on_cpu(checked)
    else:
        _write_zeros(checked)


def _queued(checked: CheckedCall, expected_m: int) -> fast_path.Queued:
    """What the fast path answers, now that scales which it does not take are converted."""
    lhs, rhs = (checked.a, checked.sfa), (checked.b, checked.sfb)
    operands = (lhs, rhs, checked.out, checked.rows, expected_m)[: _ARGUMENTS[checked.kind] - 2]
    return fast_path.queue[checked.kind](*operands)


def _write_zeros(checked: CheckedCall) -> None:
    """What a product with k = 0 is: zeros in the rows that a kernel would write."""
    out, counts = checked.out, checked.rows
    if counts is None or checked.kind == "contiguous":
        out.zero_()
        return
    row = torch.arange(checked.m, device=out.device)
    if checked.kind == "masked":
        out.masked_fill_((row < counts[:, None])[:, :, None], 0)
    else:
        # The psum layout has no gaps: its rows begin at 0 and end with the last group's padding.
        alignment = settings.get_mk_alignment_for_contiguous_layout()
        end = (counts.max() + alignment - 1) // alignment * alignment
        out.masked_fill_((row < end)[:, None], 0)


def compute_on_cpu(call: CheckedCall) -> None:
    """Write the product by the reference, `gemm_ladder.ref.gemm`, rounded once to BF16, into `call.out`,
    which may be on a GPU; the other tensors are on the CPU.

    Rows of the contiguous layout whose index is -1 become zeros, as does the padding of the psum layout;
    other rows that belong to no group are left as they were.
    """
    operands = (call.a, call.sfa, call.b, call.sfb)
    if call.rows is None:
        _write(call.out, _in_float64(reference.dense, *operands))
    elif call.kind == "contiguous":
        _write(call.out, _in_float64(reference.grouped_contiguous, *operands, call.rows))
    elif call.kind == "masked":
        products = _in_float64(reference.grouped_masked, *operands, call.rows)
        for group, count in enumerate(call.rows.tolist()):
            _write(call.out[group, :count], products[group, :count])
    else:
        alignment = settings.get_mk_alignment_for_contiguous_layout()
        grouped = functools.partial(reference.grouped_psum, alignment=alignment)
        products = _in_float64(grouped, *operands, call.rows)
        for begin, _, padded in reference.psum_rows(as_array(call.rows), alignment, call.m):
            _write(call.out[begin:padded], products[begin:padded])


def _in_float64(function: Callable[..., np.ndarray], *operands: torch.Tensor) -> np.ndarray:
    with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinities are results like any other
        return function(*map(as_array, operands))


def as_array(tensor: torch.Tensor) -> np.ndarray:
    """A CPU tensor's numbers, to be read. torch.Tensor.numpy would forbid ever after that the memory is
    resized, which FSDP does with a weight's after each pass."""
    numbers = tensor.detach().resolve_neg()
    if tensor.dtype == torch.float8_e4m3fn:
        codes: np.ndarray = np.from_dlpack(numbers.view(torch.uint8))
        return codes.view(ml_dtypes.float8_e4m3fn)
    return np.from_dlpack(numbers)


def _write(out: torch.Tensor, product: np.ndarray) -> None:
    with np.errstate(invalid="ignore", over="ignore"):
        out.copy_(torch.from_numpy(reference.to_bf16(product).view(np.int16)).view(torch.bfloat16))


def _define(kind: Kind) -> None:
    """Register the operator of a kind."""

    def compute(
        a: torch.Tensor,
        sfa: torch.Tensor,
        b: torch.Tensor,
        sfb: torch.Tensor,
        d: torch.Tensor,
        rows: torch.Tensor | None = None,
        expected_m: int = 0,
    ) -> None:
        settings.whole_number("expected_m", expected_m)  # a compiled call has not looked
        operands = ((a, sfa), (b, sfb), d, rows, expected_m)[: _ARGUMENTS[kind] - 2]
        if not settings.check_contents and fast_path.launched(fast_path.queue[kind](*operands)):
            return
        run(checks.call(kind, (a, sfa), (b, sfb), d, rows), expected_m)

    define_product(f"{NAMES[kind]}({OPERANDS}{_OTHER_ARGUMENTS[kind]}) -> ()", compute)


for _kind in NAMES:
    _define(_kind)
