"""The rules that one tensor, or the tensors of a call together, have to keep: device, dtype, shape, memory.

A function is named after what it asks for, and refuses what is not so by an InputError of one sentence. None
of them waits for a GPU.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping

import torch
from gemm_ladder.arguments import HOPPER, TMA_ALIGNMENT, row_stride
from gemm_ladder.errors import InputError
from torch._subclasses import FakeTensor
from torch.nn.parameter import is_lazy

# The transforms of torch.func, and whether a tensor stands for others inside of one.
_WRAPPED = {
    "torch.func.vmap": torch._C._functorch.is_batchedtensor,
    "torch.func.functionalize": torch._C._functorch.is_functionaltensor,
    "torch.func.grad or jvp": torch._C._functorch.is_gradtrackingtensor,
}


def pair(value: object, name: str, parts: str) -> tuple[object, object]:
    """The two elements of `value`; `parts` names them in the refusal, e.g. "(A, sfa)"."""
    if not isinstance(value, (tuple, list)):
        raise InputError(f"{name} is of type {type(value).__name__}; the pair {parts} is needed")
    if len(value) != 2:
        raise InputError(f"{name} has {len(value)} elements; the pair {parts} is needed")
    return value[0], value[1]


def tensors(named: Mapping[str, object]) -> dict[str, torch.Tensor]:
    """The same objects, after checking that each is a dense tensor."""
    found = {}
    for name, tensor in named.items():
        # By their type, as some that are none answer isinstance: unittest.mock.Mock(spec=torch.Tensor)
        if not issubclass(type(tensor), torch.Tensor) or not isinstance(tensor, torch.Tensor):
            raise InputError(f"{name} is of type {type(tensor).__name__}; a torch.Tensor is needed")
        if is_distributed(tensor):
            raise InputError(
                f"{name} is a DTensor, which may lie on many devices; one device's, to_local(), is needed"
            )
        if is_lazy(tensor):
            raise InputError(f"{name} is a parameter without a shape yet; an initialized one is needed")
        dense(name, tensor)
        found[name] = tensor
    return found


def dense(name: str, tensor: torch.Tensor) -> None:
    """Refuse a nested tensor and a sparse one. The nested one first: some of its kinds have a layout of their
    own, some have torch.strided, and neither has a shape that could be looked at."""
    if tensor.is_nested:
        raise InputError(f"{name} is a nested tensor, of several shapes; one of a single shape is needed")
    if tensor.layout != torch.strided:
        raise InputError(f"{name} has layout {tensor.layout}; a dense tensor (torch.strided) is needed")


def flag(name: str, value: object) -> bool:
    """The same value, after checking that it is a bool: "no" would count as True."""
    if not isinstance(value, bool):
        raise InputError(f"{name} is of type {type(value).__name__}; a bool is needed")
    return value


def is_distributed(tensor: object) -> bool:
    """Whether it is a DTensor. The class is asked for by its module, because to import that takes a
    second."""
    return type(tensor).__module__.startswith("torch.distributed.tensor")


def same_device(named: Mapping[str, torch.Tensor]) -> torch.device:
    """The one device on which all of them are: the CPU or a CUDA device."""
    (first, tensor), *others = named.items()
    device: torch.device = tensor.device
    for name, tensor in others:
        if tensor.device != device:
            raise InputError(
                f"{first} is on {device} and {name} on {tensor.device}; one device is needed for all"
            )
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"the tensors are on {device}; the CPU or a CUDA device is needed")
    return device


@functools.cache
def runs_on(device: torch.device) -> None:
    """Refuse a GPU that cannot run code for sm_90a."""
    if device.type == "cuda" and (capability := torch.cuda.get_device_capability(device)) != HOPPER:
        raise InputError(
            f"{device} is a {torch.cuda.get_device_name(device)}, "
            f"compute capability {capability[0]}.{capability[1]}; "
            "a Hopper GPU (compute capability 9.0), or tensors on the CPU, is needed"
        )


def dtype(name: str, tensor: torch.Tensor, needed: torch.dtype) -> None:
    if tensor.dtype != needed:
        raise InputError(f"{name} is {_short(tensor.dtype)}; {_short(needed)} is needed")


def two_dimensions(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The same tensor, after checking that it has two dimensions or more."""
    if tensor.dim() < 2:
        raise InputError(f"{name} has shape {list(tensor.shape)}; at least 2 dimensions are needed")
    return tensor


def sizes(name: str, tensor: torch.Tensor, *dimensions: str) -> tuple[int, ...]:
    """The sizes of a tensor that needs exactly these dimensions."""
    if tensor.dim() != len(dimensions):
        needed = ", ".join(dimensions)
        raise InputError(
            f"{name} has shape {list(tensor.shape)}; {len(dimensions)} dimensions, [{needed}], are needed"
        )
    return tuple(tensor.shape)


def shape(name: str, tensor: torch.Tensor, needed: tuple[int, ...], meaning: str) -> None:
    """`meaning` says where the needed sizes come from."""
    if tensor.shape != needed:
        raise InputError(f"{name} has shape {list(tensor.shape)}; {list(needed)} is needed: {meaning}")


def gapless(name: str, tensor: torch.Tensor) -> None:
    if not tensor.is_contiguous():
        needed = row_major_strides(tensor.shape)
        raise InputError(
            f"{name} has strides {tensor.stride()}; contiguous rows, strides {needed}, are needed"
        )


def spaced(name: str, tensor: torch.Tensor) -> None:
    """Refuse rows that TMA cannot load: whose elements do not lie side by side, which overlap, or which are
    not a multiple of 16 bytes apart; and matrices with gaps between them."""
    if tensor.is_contiguous() or not tensor.numel():
        return
    rows, length = tensor.shape[-2:]
    between = row_stride(tensor.shape, tensor.stride())
    if length > 1 and tensor.stride(-1) != 1:
        needed = "rows whose elements lie side by side (stride 1)"
    elif between < length:
        needed = f"rows that do not overlap, at least {length} elements apart,"
    elif between * tensor.element_size() % TMA_ALIGNMENT:
        needed = f"rows that are a multiple of {TMA_ALIGNMENT} bytes apart"
    elif tensor.dim() == 3 and tensor.size(0) > 1 and tensor.stride(0) != rows * between:
        needed = f"matrices that follow each other without a gap, a stride of {rows * between},"
    else:
        return
    raise InputError(f"{name} has strides {tensor.stride()}; {needed} are needed")


def row_major_strides(sizes: tuple[int, ...]) -> tuple[int, ...]:
    products = itertools.accumulate(reversed(sizes[1:]), lambda x, y: x * y, initial=1)
    return tuple(reversed(list(products)))


def aligned(name: str, tensor: torch.Tensor) -> None:
    if tensor.numel() and tensor.data_ptr() % TMA_ALIGNMENT:
        raise InputError(
            f"{name} starts at address {tensor.data_ptr():#x}; a multiple of {TMA_ALIGNMENT} bytes is needed"
        )


def in_memory(name: str, tensor: torch.Tensor) -> None:
    """Refuse torch's lazy negation: a view whose numbers are those in memory with the sign changed."""
    if tensor.is_neg():
        raise InputError(f"{name} is a lazily negated view; the numbers themselves (resolve_neg) are needed")


def has_memory(name: str, tensor: torch.Tensor) -> None:
    """Refuse a tensor that stands for others or for none, whose address is no address of its elements, and
    one whose storage was made smaller, as FSDP does with weights that are not in use."""
    if isinstance(tensor, FakeTensor):
        raise InputError(f"{name} is a FakeTensor, which has no memory; a tensor that has some is needed")
    in_no_transform(name, tensor)
    if tensor._is_zerotensor():
        raise InputError(
            f"{name} is a ZeroTensor of autograd's, whose zeros are in no memory; a copy of it, clone(), is "
            "needed"
        )
    needed = (tensor.storage_offset() + _extent(tensor)) * tensor.element_size()
    if tensor.numel() and (nbytes := tensor.untyped_storage().nbytes()) < needed:
        raise InputError(
            f"{name} has a storage of {nbytes} bytes; {needed}, for all of its elements, are needed"
        )


def stands_for_others(tensor: torch.Tensor) -> bool:
    """Whether a tensor has no memory of its own, or one stands for it inside of a transform of torch.func."""
    return isinstance(tensor, FakeTensor) or any(holds(tensor) for holds in _WRAPPED.values())


def in_no_transform(name: str, tensor: torch.Tensor) -> None:
    """Refuse a tensor that stands for others inside of a transform of torch.func."""
    for transform, holds in _WRAPPED.items():
        if holds(tensor):
            raise InputError(
                f"{name} is a tensor inside of {transform}, for which these products have no rule; a call "
                "outside of it is needed"
            )


def disjoint(output: str, named: Mapping[str, torch.Tensor]) -> None:
    """Refuse an output that shares memory with an input. Everything between an input's first and last byte
    counts as its memory, gaps between its rows too."""
    begin, end = _span(named[output])
    for name, tensor in named.items():
        if name == output:
            continue
        first, last = _span(tensor)
        if max(begin, first) < min(end, last):
            raise InputError(f"{output} shares memory with {name}; memory of its own is needed")


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """The addresses of its first byte and of the byte after its last; (0, 0) where it has none."""
    if not tensor.numel():
        return 0, 0
    begin = tensor.data_ptr()
    return begin, begin + _extent(tensor) * tensor.element_size()


def _extent(tensor: torch.Tensor) -> int:
    """The elements from its first to its last one, with the gaps between them; it has one at least."""
    if tensor.is_contiguous():
        return tensor.numel()
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def no_tangents(given: Mapping[str, torch.Tensor]) -> None:
    """Refuse what has a forward-mode derivative."""
    for name, tensor in given.items():
        if torch.autograd.forward_ad.unpack_dual(tensor).tangent is not None:
            raise InputError(
                f"{name} has a tangent, which no kernel computes with; the tensor without it, "
                f"torch.autograd.forward_ad.unpack_dual({name}).primal, is needed"
            )


def no_gradients(output: str, given: Mapping[str, torch.Tensor]) -> None:
    """Refuse an output that requires grad or cannot be written here, inputs that require grad unless grad
    mode is off, and what has a forward-mode derivative."""
    out = given[output]
    if out.requires_grad:
        raise InputError(
            f"{output} requires grad, which no kernel computes; a tensor that does not is needed"
        )
    for name, tensor in given.items():
        if torch.is_grad_enabled() and tensor.requires_grad:
            raise InputError(
                f"{name} requires grad, which no kernel computes; {name}.detach(), or a call inside of "
                "torch.no_grad(), is needed"
            )
    no_tangents(given)
    if not out.is_cuda and out.is_inference() and not torch.is_inference_mode_enabled():
        raise InputError(
            f"{output} is an inference tensor, which cannot be written outside torch.inference_mode(); an "
            "ordinary tensor, or a call inside of it, is needed"
        )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
