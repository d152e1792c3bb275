"""Casts by their plans, without a GPU: plans are added for CPU tensors, and the emulator launches them."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable

import gemm_ladder as gl
import pytest
import torch
from cast_cases import columns, numbers, spaced
from gemm_ladder import launch
from gemm_ladder.casts import functions, launching, operands, plans
from gemm_ladder.casts.kernel import Before, Kind
from gemm_ladder.errors import InputError, LaunchError

BF16 = torch.bfloat16
M, K = 128, 144
Arguments = tuple[object, ...]


@pytest.fixture(autouse=True)
def launched(monkeypatch: pytest.MonkeyPatch) -> list[launching.Args]:
    """The arguments of every launch by a plan, whose kernel writes the lower half of x's address."""
    noted: list[launching.Args] = []

    def start(name: str, entry: Callable[..., str | None], arguments: launching.Args, device: object) -> None:
        noted.append(arguments)
        if error := entry(arguments):
            raise LaunchError(f"{name}: {error}")

    def entry(arguments: launching.Args) -> None:
        ctypes.c_uint32.from_address(arguments.params.scales).value = arguments.params.x % 2**32

    monkeypatch.setattr(launch, "start", start)
    monkeypatch.setattr(launch, "usable_sms", lambda device, limit=0: limit or 4)
    monkeypatch.setattr(launching, "why_not", lambda kernel, device: None)
    monkeypatch.setattr(launching, "launcher", lambda kernel: entry)
    monkeypatch.setattr(plans, "_plans", {})
    return noted


def integers(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def given(before: Before = "nothing", x: torch.Tensor | None = None, **others: object) -> Arguments:
    """The arguments of a cast."""
    x = numbers((M, columns(before, K)), BF16) if x is None else x
    named = {"weight": None, "eps": 0.0, "use_ue8m0": False, "rows": None, "masked_m": None, "ks": None}
    named |= {"psum_m": None}
    if before == "rms_norm":
        named |= {"weight": numbers((1, K), BF16, seed=3)[0], "eps": 1e-6}
    return (x, *(named | others).values())


def plan(kind: Kind, before: Before, arguments: Arguments) -> operands.Results:
    """Add the plan that a first call on a GPU would add."""
    call = operands.check(kind, before, *arguments)
    out = functions.run(call, True)
    plans.add(plans.key_of(kind, before, *arguments), call, out, operands.as_returned(call, out))
    return out


def cast(kind: Kind, before: Before, arguments: Arguments) -> list[torch.Tensor]:
    codes, scales = functions._call(kind, before, *arguments)
    assert not codes.requires_grad and not scales.requires_grad
    return [codes.view(torch.uint8), scales]


def fields(structure: ctypes.Structure) -> dict[str, object]:
    return {name: getattr(structure, name) for name, *_ in structure._fields_}


CASES: list[tuple[Kind, Before, dict[str, object]]] = [
    ("per_token", "nothing", {}),
    ("per_token", "silu_and_mul", {"use_ue8m0": True}),
    ("per_token", "silu_and_mul", {"psum_m": integers(5, M)}),
    ("per_token", "rms_norm", {"rows": integers(5, -1, 0)}),
    ("per_block", "nothing", {}),
    ("per_channel", "nothing", {}),
    ("per_channel_turned", "nothing", {}),
    ("per_channel_turned", "nothing", {"ks": integers(128, 0)}),
    ("per_block", "rms_norm", {}),
]


@pytest.mark.parametrize(("kind", "before", "others"), CASES)
def test_arguments(
    kind: Kind, before: Before, others: dict[str, object], launched: list[launching.Args]
) -> None:
    """A plan launches what would be launched without it, and returns the like: also where addresses are not
    aligned, and where autograd would want to know."""
    plan(kind, before, given(before, **others))
    for number in range(3):
        like = given(before, **others)[0]
        assert isinstance(like, torch.Tensor)
        x = torch.zeros(like.numel() + number, dtype=BF16)[number:].view(like.shape)
        changed = {name: one.clone() for name, one in others.items() if isinstance(one, torch.Tensor)}
        arguments = given(before, x.requires_grad_(number == 2), **others | changed)
        launched.clear()
        returned = functions._call(kind, before, *arguments)
        call = operands.check(kind, before, *arguments)
        out = operands.results(call, True)
        for one, other in zip(returned, operands.as_returned(call, out), strict=True):
            assert (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype)
            assert one.untyped_storage().nbytes() == other.untyped_storage().nbytes()
            assert not one.requires_grad
        wanted = launching.arguments(call, out, 4)
        wanted.params.codes, wanted.params.scales = (one.data_ptr() for one in returned)
        (found,) = launched
        assert (found.params.inverse_roots is None) == (out.inverse_roots is None)
        wanted.params.inverse_roots = found.params.inverse_roots  # memory that nobody gets
        assert fields(found.params) == fields(wanted.params) and found.num_sms == 4


class Derived(torch.Tensor):
    pass


X = numbers((M, K), BF16)
MISSED: dict[str, Callable[[], Arguments]] = {
    "rows": lambda: given(x=X[:-1]),
    "strides": lambda: given(x=spaced(X, "cpu", gap=8)),
    "columns side by side": lambda: given(x=X.mT.contiguous().mT),
    "groups": lambda: given(x=X[None]),
    "masked": lambda: given(x=X[None], masked_m=integers(M)),
    "psum": lambda: given(x=X, psum_m=integers(M)),
    "type": lambda: given(x=X.float()),
    "negated": lambda: given(x=torch._neg_view(X)),
    "class": lambda: given(x=X.as_subclass(Derived)),
    "use_ue8m0": lambda: given(x=X, use_ue8m0=True),
    "index": lambda: given(x=X, rows=integers(0)),
}


@pytest.mark.parametrize("name", MISSED)
def test_no_plan(name: str, launched: list[launching.Args]) -> None:
    """What differs from what was planned has no plan."""
    plan("per_token", "nothing", given(x=X))
    cast("per_token", "nothing", MISSED[name]())
    assert not launched
    cast("per_token", "nothing", given(x=X))
    assert len(launched) == 1


def test_a_weight_with_gaps(launched: list[launching.Args]) -> None:
    """It is copied in every call."""
    arguments = given("rms_norm", weight=numbers((1, 2 * K), BF16)[0, ::2])
    plan("per_token", "rms_norm", arguments)
    cast("per_token", "rms_norm", arguments)
    assert not launched


def test_settings_and_transforms(launched: list[launching.Args], settings_restored: None) -> None:
    plan("per_token", "nothing", given(x=X))
    gl.set_num_sms(3)
    cast("per_token", "nothing", given(x=X))
    assert not launched
    plan("per_token", "nothing", given(x=X))
    cast("per_token", "nothing", given(x=X))
    assert launched[0].num_sms == 3
    with pytest.raises(InputError, match=r"x is a tensor inside of torch\.func\.vmap"):
        torch.func.vmap(gl.per_token_group_quant_fp8)(X[None])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        cast("per_token", "nothing", given(x=X))
    assert any(one.key == "gemm_ladder::per_token_group_quant_fp8" for one in profile.key_averages())


def test_refusals(launched: list[launching.Args]) -> None:
    """Of what has the same key, or would have: in the same words as without a plan."""
    x, weight = X.clone(), X[0].clone()
    plan("per_token", "nothing", given(x=x))
    plan("per_token", "nothing", given(x=x[None]))
    plan("per_token", "rms_norm", given("rms_norm", x, weight=weight))
    meta = x.to("meta")
    for message, kind_before, arguments in (
        ("eps is nan", "rms_norm", given("rms_norm", x, weight=weight, eps=float("nan"))),
        (r"eps is of type list", "rms_norm", given("rms_norm", x, weight=weight, eps=[])),
        ("weight is float32", "rms_norm", given("rms_norm", x, weight=weight.float())),
        ("the tensors are on meta", "nothing", given(x=meta)),
        ("x is of type list", "nothing", given(x=[])),
        ("rows is int64", "nothing", given(x=x, rows=torch.zeros(2, dtype=torch.int64))),
    ):
        with pytest.raises(InputError, match=message):
            functions._call("per_token", kind_before, *arguments)
    grouped = x[None]
    x.untyped_storage().resize_(M * K * 2 - 2)
    with pytest.raises(InputError, match="x has a storage of 36862 bytes; 36864, for all of its elements"):
        gl.per_token_group_quant_fp8(grouped)
    assert not launched


def test_a_refused_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "launcher", lambda kernel: lambda arguments: "no such luck")
    plan("per_token", "nothing", given(x=X))
    with pytest.raises(LaunchError, match=r"^a cast: no such luck$"):
        gl.per_token_group_quant_fp8(X)


def test_what_gets_no_plan() -> None:
    """What a launch would not be like: no numbers, and codes whose rows have padding, which is written."""
    for kind, x in (("per_token", X[:0]), ("per_token", X[:, :0]), ("per_channel_turned", X[:-1])):
        plan(kind, "nothing", given(x=x))
    assert not plans._plans


def test_threads(monkeypatch: pytest.MonkeyPatch, launched: list[launching.Args]) -> None:
    """Threads that add plans, use each other's and drive them out: no more are kept than may be, and every
    launch has its own arguments."""
    monkeypatch.setattr(plans, "MOST", 3)
    wrong: list[object] = []

    def work(seed: int) -> None:
        try:
            for number in range(60):
                x = X[: 1 + (seed + number * number) % 5].clone()
                plan("per_token", "nothing", given(x=x))
                key = plans.key_of("per_token", "nothing", *given(x=x))
                done = plans.run(key, *given(x=x))  # None if another thread was quicker
                if done and (done[1].view(torch.int32)[0, 0].item() - x.data_ptr()) % 2**32:
                    wrong.append(done)
                if len(plans._plans) > 3:
                    wrong.append(len(plans._plans))
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and launched and len(plans._plans) == 3


@pytest.mark.gpu
@pytest.mark.parametrize(("kind", "before", "others"), CASES)
def test_on_a_gpu(
    kind: Kind, before: Before, others: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is really launched: the first call plans, later ones have its bits, on any stream, from any
    address, and in a CUDA graph."""
    monkeypatch.undo()
    monkeypatch.setattr(plans, "_plans", {})

    def placed(offset: int) -> Arguments:
        on_gpu = [one.cuda() if isinstance(one, torch.Tensor) else one for one in given(before, **others)]
        on_gpu[0] = torch.cat([on_gpu[0].new_zeros(offset), on_gpu[0].view(-1)])[offset:].view_as(on_gpu[0])
        return tuple(on_gpu)

    first, first_scales = cast(kind, before, placed(0))
    assert len(plans._plans) == 1
    monkeypatch.setattr(operands, "check", lambda *arguments: pytest.fail("not by the plan"))
    graph = torch.cuda.CUDAGraph()
    for stream in (torch.cuda.current_stream(), torch.cuda.Stream()):
        for offset in (0, 1, 8):
            arguments = placed(offset)
            torch.cuda.synchronize()
            with torch.cuda.stream(stream):
                codes, scales = cast(kind, before, arguments)
            stream.synchronize()
            assert torch.equal(codes, first) and torch.equal(scales.nan_to_num(7), first_scales.nan_to_num(7))
    arguments = placed(0)
    with torch.cuda.graph(graph):
        codes, scales = cast(kind, before, arguments)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(codes, first)
    assert torch.equal(scales.nan_to_num(7), first_scales.nan_to_num(7))
