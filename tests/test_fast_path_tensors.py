"""Tensors and pairs of every kind before the fast path: it launches what is plain, and leaves the rest to the
checks, which refuse it in a sentence or compute the right answer."""

from __future__ import annotations

import collections
import gc
import warnings
from collections.abc import Callable
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from call_arguments import Arguments, K, N
from cases import place
from gemm_ladder import checks
from gemm_ladder.arguments import KINDS
from gemm_ladder.errors import InputError
from gemm_ladder.lab.operands import normal
from gemm_ladder.production import fast_path
from planned_calls import EXPECTED_M, HINTED, PUBLIC, add, call_of, notes, queue
from planned_calls import no_plans as no_plans  # a fixture of all tests
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode
from wrong_operands import NOT_MADE, Derived


def operands_of(layout: str) -> tuple[str, ...]:
    return ("A", "sfa", "B", "sfb", *list(call_of(layout))[2:])


@pytest.mark.parametrize("layout", KINDS)
def test_storages_that_were_made_smaller(layout):
    """A tensor keeps its size when its storage loses its last bytes, or all."""
    add(layout)
    for which in operands_of(layout):
        for lost in (1, None):
            call = call_of(layout)
            call.change(which, lambda x: torch.empty_strided(x.shape, x.stride(), dtype=x.dtype).copy_(x))
            assert queue(layout, call) is not None

            def shrink(x, lost=lost):
                storage = x.untyped_storage()
                storage.resize_(0 if lost is None else storage.nbytes() - lost)
                return x

            call.change(which, shrink)
            assert queue(layout, call) is None
            with pytest.raises(
                InputError, match=rf"^{which} has a storage of \d+ bytes; \d+, for all of its"
            ):
                checks.operands(layout, *call.values(), general=True)


@pytest.mark.parametrize("layout", KINDS)
def test_other_devices(layout):
    add(layout)
    for which in operands_of(layout):
        call = call_of(layout)
        call.change(which, lambda x: x.to("meta"))
        assert queue(layout, call) is None


def placed_like(x: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """What begins 64 bytes into `base`, which is longer, with the sizes and strides of `x`."""
    return base.as_strided(x.shape, x.stride(), 64 // x.itemsize)


def zeros(x: torch.Tensor, make: Callable[..., torch.Tensor] = torch.zeros) -> torch.Tensor:
    return make(4 * x.numel() + 128, dtype=x.dtype)


def escaped(transform: Callable[..., Callable[..., object]], x: torch.Tensor) -> torch.Tensor:
    """What a transform of torch.func calls its function with, after the transform has ended."""
    found: list[torch.Tensor] = []
    transform(lambda y: found.append(y) or y.float().sum())(x)
    return found[0]


func = torch.func
# Ways to a tensor of torch's own class, most with the same sizes, whose elements are not those in memory.
ODD: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "negated lazily": torch._neg_view,
    "a ZeroTensor": lambda x: placed_like(x, zeros(x, torch._efficientzerotensor)),
    "functionalized": torch._to_functional_tensor,
    "a view of what is functionalized": lambda x: placed_like(x, torch._to_functional_tensor(zeros(x))),
    "a functionalized view": lambda x: torch._to_functional_tensor(placed_like(x, zeros(x))),
    "escaped from functionalize": lambda x: escaped(func.functionalize, x),
    "escaped from vmap": lambda x: escaped(lambda f: func.vmap(f), x[None]),
    "escaped from grad": lambda x: escaped(func.grad, x),
    "on no device": lambda x: x.to("meta"),
    "nested": lambda x: torch.nested.nested_tensor([x.float(), x.float()]),
    "sparse": lambda x: x.float().to_sparse(),
    "quantized": lambda x: torch.quantize_per_tensor(x.float(), 1.0, 0, torch.qint8),
    "opaque": lambda x: x.float().to_mkldnn(),
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("layout", KINDS)
def test_elements_that_are_not_in_memory(layout: str, odd: str) -> None:
    """Nothing is launched, and nothing computed but with scales that are negated lazily."""
    add(layout)
    further = (EXPECTED_M,) if layout == "masked" else ()
    made = 0
    for which in operands_of(layout):
        call = call_of(layout)
        out = call["out"].zero_()
        try:
            call.change(which, ODD[odd])
        except NOT_MADE:
            continue
        made += 1
        assert queue(layout, call) is None, which
        if odd == "negated lazily" and which in ("sfa", "sfb"):
            PUBLIC[layout](*call.values(), *further)
            continue
        with pytest.raises(InputError) as refused:
            PUBLIC[layout](*call.values(), *further)
        assert "\n" not in str(refused.value) and not notes
        assert not out.view(torch.uint8).any()
    assert made


@pytest.mark.parametrize("which", ["sfa", "sfb"])
def test_lazily_negated_scales(which: str) -> None:
    """A kernel gets the numbers, and not those in memory, which have the wrong sign."""
    for m, n, k in ((1, 8, 128), (5, 8, 128), (4, 136, 256)):
        add("dense", m, n, k)
        placed = place(normal(np.random.default_rng(0), m, n, k))
        for change in (torch._neg_view, lambda x: torch.complex(x, x).conj().imag):
            call = Arguments(lhs=placed.lhs, rhs=placed.rhs, out=placed.out)
            assert queue("dense", call)
            call.change(which, change)
            assert queue("dense", call) is None
            if which == "sfb" and change is not torch._neg_view and (n, k) == (136, 256):
                continue  # its strides are refused
            checked = checks.call("dense", *call.values())
            converted = getattr(checked, which)
            assert not converted.is_neg()
            assert torch.equal(converted, -{"sfa": placed.lhs, "sfb": placed.rhs}[which][1])


def test_dispatch_keys() -> None:
    """Ordinary tensors, also a GPU's, have no key but the plain ones; every odd one has another."""
    plain = fast_path._plain_keys()

    def others(tensor: torch.Tensor) -> int:
        return torch._C._dispatch_keys(tensor).raw_repr() & ~plain

    with torch.inference_mode():
        inference = torch.empty(1)
    for dtype in (torch.float8_e4m3fn, torch.float32, torch.bfloat16, torch.int32):
        assert not others(torch.empty(2, 3, dtype=dtype).T)
    assert not others(inference) and not others(torch.nn.Parameter(torch.empty(1)))

    class Wrapper(torch.Tensor):
        @classmethod
        def __torch_dispatch__(cls, *arguments: object) -> object:
            raise NotImplementedError

    wrapped = [
        others(torch.Tensor._make_wrapper_subclass(Wrapper, (1,), device=device))
        for device in ("cpu", "cuda")
    ]
    keys = torch._C.DispatchKey
    of_python = [torch._C.DispatchKeySet(key).raw_repr() for key in (keys.Python, keys.PythonTLSSnapshot)]
    backends = 0x7FFF  # the low bits say on which devices
    assert all(one & ~backends & ~of_python[0] & ~of_python[1] == 0 for one in wrapped)
    x = torch.ones(2, 128)
    for name, change in ODD.items():
        assert others(change(x)), name


Named = collections.namedtuple("Named", "matrix scales")


class Pretender:
    """Says that it is a tensor, and has what one has."""

    __class__ = torch.Tensor  # type: ignore[assignment]

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __getattr__(self, name: str) -> object:
        return getattr(self.tensor, name)


def derived(x: torch.Tensor) -> torch.Tensor:
    return x.as_subclass(Derived)


@pytest.mark.parametrize("layout", KINDS)
def test_what_is_no_operand(layout):
    """What is no plain tensor is left to the checks, and raises nothing here."""
    add(layout)
    for which in ("lhs", "rhs"):
        for change in (
            list,
            lambda x: Named(*x),
            lambda x: x[:1],
            lambda x: (*x, x[0]),
            lambda x: (),
            lambda x: None,
            lambda x: x[0],
        ):
            call = call_of(layout)
            call.change(which, change)
            assert queue(layout, call) is None
    for which in ("A", "sfb", *list(call_of(layout))[2:]):
        for change in (
            lambda x: None,
            lambda x: 3,
            lambda x: x.float().numpy(),
            derived,
            Pretender,
            lambda x: Mock(spec=torch.Tensor),
        ):
            call = call_of(layout)
            call.change(which, change)
            assert queue(layout, call) is None
            if change is derived:
                continue  # it has the product
            with pytest.raises(InputError, match=rf"^{which} is of type \w+; a torch.Tensor is needed$"):
                checks.operands(layout, *call.values(), general=True)
    call = call_of(layout)
    call.change("out", lambda x: x.requires_grad_())
    assert queue(layout, call) is None
    call = call_of(layout)
    call.change("B", lambda x: torch.nn.Parameter(x, requires_grad=False))  # a module's weights
    assert queue(layout, call)
    if layout in HINTED:
        assert fast_path.queue[layout](*call.values(), "7") is False
        assert fast_path.queue[layout](*call.values(), EXPECTED_M + 1) is False  # has no plan


@pytest.mark.parametrize("layout", KINDS)
def test_what_others_want_to_see(layout):
    """Modes, profilers and transforms of torch.func see calls that go through Python; autograd the inputs."""
    add(layout)
    call = call_of(layout)
    with FlopCounterMode(display=False):
        assert queue(layout, call) is None
    with torch.profiler.profile():
        assert queue(layout, call) is None
    traced = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        torch.jit.trace(
            lambda x: traced.append(queue(layout, call)) or x + 1, torch.zeros(2), check_trace=False
        )
    assert traced == [None]
    assert torch.func.vmap(lambda x: x + (queue(layout, call) is None))(torch.zeros(2)).tolist() == [1, 1]
    assert queue(layout, call)
    for which in ("A", "sfa", "B", "sfb"):
        call = call_of(layout)
        call.change(which, lambda x: x.requires_grad_())
        assert queue(layout, call) is None
        with torch.no_grad():
            assert queue(layout, call)


@pytest.mark.parametrize("layout", KINDS)
def test_forward_mode_derivatives(layout: str) -> None:
    """A tangent is not left out without a word; tensors without one have their product."""
    add(layout)
    further = (EXPECTED_M,) if layout == "masked" else ()
    with forward_ad.dual_level():
        for which in ("A", "sfa", "B", "sfb", "out"):
            call = call_of(layout)
            call.change(which, lambda x: forward_ad.make_dual(x, torch.ones_like(x)))
            assert queue(layout, call) is None
            with pytest.raises(
                InputError, match=rf"^{which} has a tangent, .*unpack_dual\({which}\).primal, is"
            ):
                PUBLIC[layout](*call.values(), *further)
        PUBLIC[layout](*call_of(layout).values(), *further)
    assert not notes
    assert queue(layout, call_of(layout))


SWAPS: dict[str, Callable[[torch.Tensor, torch.Tensor], object]] = {
    ".data": lambda x, y: setattr(x, "data", y),
    "set_": lambda x, y: x.set_(y.untyped_storage(), y.storage_offset(), y.shape, y.stride()),
    "swap_tensors": torch.utils.swap_tensors,
}


@pytest.mark.parametrize("swap", SWAPS)
def test_memory_that_is_swapped(swap: str) -> None:
    """Nothing is remembered of a tensor: its address is read in each call, as are its sizes."""
    add("dense")
    fields = {"A": "a", "sfa": "sfa", "B": "b", "sfb": "sfb", "out": "d"}
    for which, field in fields.items():
        call = call_of("dense")
        found: list[torch.Tensor] = []
        call.change(which, lambda x, found=found: found.append(x) or x)
        (tensor,) = found
        for copy in (
            torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype),
            tensor.clone()[:1],
        ):
            fits = copy.shape == tensor.shape
            SWAPS[swap](tensor, copy)
            given = queue("dense", call)
            assert given[field] == tensor.data_ptr() if fits else given is None


def test_objects_at_the_address_of_others() -> None:
    """Objects that take the place of freed ones in Python's memory are not mistaken for them."""
    add("dense")
    seen = set()
    for number in range(300):
        call = call_of("dense")
        if number % 3 == 1:
            call.change("A", torch._neg_view)
        elif number % 3 == 2:
            call.change("A", lambda x: x[:, : K // 2])
        a = call["lhs"][0]
        seen.add(id(a))
        given = queue("dense", call)
        assert given["a"] == a.data_ptr() if number % 3 == 0 else given is None
        del a, call
        gc.collect(0)
    assert len(seen) < 300, "no address was used twice"


def test_sizes_of_one() -> None:
    """Their strides do not matter, here as in the checks."""
    for m, n, k in ((1, 8, 128), (5, 8, 128), (1, N, 256), (5, N, 128)):
        add("dense", m, n, k)
        placed = place(normal(np.random.default_rng(0), m, n, k))
        for which in ("A", "sfa", "B", "sfb", "out"):
            call = Arguments(lhs=placed.lhs, rhs=placed.rhs, out=placed.out)
            call.change(
                which,
                lambda x: x.as_strided(
                    x.shape,
                    [77 if size == 1 else step for size, step in zip(x.shape, x.stride(), strict=True)],
                ),
            )
            checked = checks.call("dense", *call.values())
            given = queue("dense", call)
            addresses = {
                "a": checked.a,
                "sfa": checked.sfa,
                "b": checked.b,
                "sfb": checked.sfb,
                "d": checked.out,
            }
            assert {name: given[name] for name in addresses} == {
                name: one.data_ptr() for name, one in addresses.items()
            }
