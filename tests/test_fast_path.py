"""The fast path, without a GPU: plans for CPU tensors are added, with a launcher that notes its arguments."""

from __future__ import annotations

import ctypes
import re
import sys
import threading

import gemm_ladder as gl
import numpy as np
import pytest
import torch
from call_arguments import GROUPS, MAX_M, Arguments, K, M, N, misaligned
from cases import place
from gemm_ladder import build, checks, ops, scales, settings
from gemm_ladder.arguments import KINDS, align, row_stride
from gemm_ladder.errors import LaunchError
from gemm_ladder.lab.operands import normal
from gemm_ladder.production import fast_path
from planned_calls import EXPECTED_M, NUM_SMS, PUBLIC, add, answer, ask, call_of, names, notes, queue, refusal
from planned_calls import no_plans as no_plans  # a fixture of all tests
from wrong_operands import Derived


@pytest.mark.parametrize(
    ("layout", "m"),
    [*(("dense", m) for m in (1, 3, M, 128)), ("contiguous", M), ("masked", MAX_M), ("psum", M)],
)
def test_what_a_kernel_is_given(layout, m):
    call = call_of(layout, m)
    assert queue(layout, call) is None  # no plan yet
    add(layout, m)
    (a, sfa), (b, sfb), out, *rows = call.values()
    assert queue(layout, call) == {
        **{"a": a.data_ptr(), "sfa": sfa.data_ptr(), "b": b.data_ptr(), "sfb": sfb.data_ptr()},
        **{"d": out.data_ptr(), "m": m, "n": N, "k": K},
        **{"sfa_stride": align(m, 4), "num_sms": NUM_SMS, "stream": None},
        **{"a_stride": K, "b_stride": K, "d_stride": N},
        "layout": rows[0].data_ptr() if rows else None,
        "groups": 1 if layout == "dense" else GROUPS,
        "groups_a": GROUPS if layout == "masked" else 1,
    }


def wider(by: int):
    """Makes a tensor the left part of one whose rows are this much longer."""
    return lambda x: torch.zeros(*x.shape[:-1], x.shape[-1] + by, dtype=torch.uint8).to(x.dtype)[
        ..., : x.shape[-1]
    ]


CHANGES = [
    lambda x: x,
    lambda x: x[:1],
    lambda x: x[..., :1],
    lambda x: x[None],
    lambda x: x.mT,
    lambda x: x.mT.contiguous().mT,
    torch.Tensor.contiguous,
    misaligned,
    lambda x: x.to(torch.float32),
    lambda x: x.to(torch.bfloat16),
    lambda x: x.to(torch.int32),
    lambda x: x.to("meta"),
    lambda x: torch.zeros(x.numel() + 8, dtype=x.dtype)[8:].view(x.shape),
    lambda x: x.expand(2, *x.shape),
    wider(16),
    wider(8),
    wider(4),
    lambda x: None,
    lambda x: scales.mn_major(x) if x.dtype == torch.float32 else x,
]


@pytest.mark.parametrize("layout", KINDS)
def test_what_is_queued_is_right(layout):
    """What the fast path launches, `checks` accepts, and it converts nothing."""
    rng = np.random.default_rng(0)
    passed = 0
    for _ in range(800):
        m, n, k = (int(rng.choice(sizes)) for sizes in ([1, 4, 5], [8, 128, 136], [128, 256]))
        call = call_of(layout)
        if layout == "dense":
            placed = place(normal(rng, m, n, k))
            call = Arguments(lhs=placed.lhs, rhs=placed.rhs, out=placed.out)
        which = rng.choice(["A", "sfa", "B", "sfb", *list(call)[2:]])
        try:
            call.change(which, CHANGES[rng.integers(len(CHANGES))])
        except (RuntimeError, IndexError):  # a transposition of what has one dimension, and the like
            continue
        a, b = call["lhs"][0], call["rhs"][0]
        if a is not None and b is not None and a.dim() > 1 and b.dim() > 1:
            add(layout, a.shape[-2], b.shape[-2], a.shape[-1])
        if given := queue(layout, call):
            passed += 1
            tensors = [
                x
                for x in checks.operands(layout, *call.values(), general=True)
                if isinstance(x, torch.Tensor)
            ]
            fields = ("a", "sfa", "b", "sfb", "d", "layout")
            assert [given[field] for field in fields[: len(tensors)]] == [x.data_ptr() for x in tensors]
            for field, x in (("a_stride", tensors[0]), ("b_stride", tensors[2]), ("d_stride", tensors[4])):
                assert given[field] == row_stride(x.shape, x.stride())
    assert passed > 100


def at(memory: torch.Tensor, start: int, like: torch.Tensor) -> torch.Tensor:
    """A tensor of the same shape and type as `like`, at `start` bytes into the memory."""
    return (
        memory[start:]
        .view(like.dtype)
        .as_strided(like.shape, like.stride(), (memory.storage_offset() + start) // like.itemsize)
    )


@pytest.mark.parametrize("layout", KINDS)
def test_outputs_that_overlap(layout):
    """An output that overlaps an operand is left to the checks, one that lies right beside it is not."""
    add(layout)
    memory = torch.zeros(1 << 19, dtype=torch.uint8)
    memory = memory[-memory.data_ptr() % 16 :][: 1 << 18]
    begin, end = 1 << 17, (1 << 17) + 2 * call_of(layout)["out"].numel()
    end += -end % 16
    for which in ("A", "sfa", "B", "sfb", *list(call_of(layout))[3:]):
        for place_of, queued in (
            (lambda extent: begin - extent - 32, True),
            (lambda extent: begin - extent + 16, False),
            (lambda extent: end - 16, False),
            (lambda extent: end, True),
        ):
            call = call_of(layout)
            call.change("out", lambda x: at(memory, begin, x))

            def move(x, place_of=place_of):
                last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
                return at(memory, place_of((last + 1) * x.itemsize) // 16 * 16, x)

            call.change(which, move)
            assert (queue(layout, call) is not None) == queued


@pytest.mark.parametrize("layout", KINDS)
def test_a_write_is_counted(layout):
    """Once for each launch, and not where nothing is launched."""
    call = call_of(layout)
    before = call["out"]._version
    assert queue(layout, call) is None
    assert call["out"]._version == before
    add(layout)
    for writes in (1, 2):
        assert queue(layout, call)
        assert call["out"]._version == before + writes


def test_plans_are_for_ranges_of_m():
    """A plan holds from the least to the largest m, and another range of the same weight has its own."""
    add("dense", 3, last=10, sms=1)
    add("dense", 17, last=20, sms=2)
    add("dense", 11, last=16, sms=3)
    found = {m: queue("dense", call_of("dense", m)) for m in range(1, 23)}
    sms = {m: given["num_sms"] for m, given in found.items() if given}
    assert sms == {**dict.fromkeys(range(3, 11), 1), **dict.fromkeys(range(11, 17), 3)} | dict.fromkeys(
        range(17, 21), 2
    )
    add("dense", 3, last=10, sms=4)  # what is added for the same range replaces the plan
    assert queue("dense", call_of("dense", 5))["num_sms"] == 4


def test_plans_are_dropped():
    call = call_of("dense")
    add("dense")
    assert queue("dense", call)
    fast_path.forget()
    assert queue("dense", call) is None


def test_plans_are_for_settings():
    """Callers set them around single calls; the plan is there again when the setting is."""
    call = call_of("dense")
    add("dense")
    for change in (gl.set_num_sms, gl.set_mk_alignment_for_contiguous_layout):
        before = {gl.set_num_sms: 0}.get(change, 128)
        change(64)
        assert queue("dense", call) is None
        change(before)
        assert queue("dense", call)


@pytest.mark.parametrize("layout", KINDS)
def test_the_api_uses_the_fast_path(layout, monkeypatch):
    """The API uses the fast path, except where the contents of a grouped layout are to be checked."""
    function = PUBLIC[layout]
    further = (EXPECTED_M,) if layout == "masked" else ()
    call = call_of(layout)
    add(layout)
    function(*call.values(), *further)
    assert notes.pop()["d"] == call["out"].data_ptr()
    answer[0] = ctypes.addressof(refusal)
    with pytest.raises(LaunchError, match=r"^the production kernel: no such luck$"):
        function(*call.values(), *further)
    assert notes.pop()
    monkeypatch.setattr(settings, "check_contents", True)
    if layout != "dense":
        function(*call.values(), *further)
        assert not notes


@pytest.mark.parametrize("layout", KINDS)
def test_scales_by_rows(layout):
    """Where A's scales have other strides, a call is asked again with a copy, without the checks."""
    further = (EXPECTED_M,) if layout == "masked" else ()
    add(layout)
    call = call_of(layout)
    copies = []
    with pytest.MonkeyPatch.context() as patch:
        copy = scales.mn_major
        patch.setattr(scales, "mn_major", lambda sfa: copies.append(copy(sfa)) or copies[-1])
        patch.setattr(checks, "call", None)
        for change in (torch.Tensor.contiguous, wider(4), lambda x: torch.complex(x, x).imag):
            values = call["lhs"][1].clone()
            call.change("sfa", lambda x, change=change: change(x).copy_(x))
            PUBLIC[layout](*call.values(), *further)
            assert notes.pop()["sfa"] == copies[-1].data_ptr()
            assert torch.equal(copies.pop(), values) and not notes


@pytest.mark.parametrize("layout", KINDS)
def test_scales_by_rows_that_are_no_operands(layout):
    """What else is wrong with them is left to the checks, as is a call that is not plain otherwise."""
    call = call_of(layout)
    call.change("sfa", torch.Tensor.contiguous)
    assert ask(layout, call) is False  # no plan
    add(layout)
    assert ask(layout, call) is True and not notes
    sfa = call["lhs"][1]
    memory = call["out"].view(torch.float32).flatten()
    for change in (
        lambda x: x.to(torch.bfloat16),
        lambda x: x[..., :1],
        lambda x: x.expand(2, *x.shape),
        lambda x: x.to("meta"),
        lambda x: x.as_subclass(Derived),
        lambda x: x.clone().requires_grad_(),
        lambda x: memory[: x.numel()].view(x.shape),  # overlaps the output
        lambda x: shrunk(x.clone()),
    ):
        call.change("sfa", lambda _, change=change: change(sfa))
        assert ask(layout, call) is False and not notes


def shrunk(x: torch.Tensor) -> torch.Tensor:
    """A tensor whose storage has lost its last byte."""
    storage = x.untyped_storage()
    storage.resize_(storage.nbytes() - 1)
    return x


@pytest.mark.parametrize("layout", KINDS)
def test_converted_scales_take_the_fast_path(layout):
    """Calls with scales in other layouts or types go through the checks, and from there to the plan."""
    add(layout)
    for which, change in (("sfa", torch.Tensor.contiguous), ("sfb", lambda x: x.mT.contiguous().mT)):
        call = call_of(layout)
        call.change(which, change)
        assert queue(layout, call) is None
        checked = checks.call(layout, *call.values())
        assert fast_path.launched(ops._queued(checked, EXPECTED_M))
        assert notes.pop()["d"] == call["out"].data_ptr()


def test_without_a_compiler(monkeypatch):
    def refuse(*arguments, **keywords):
        raise build.ToolchainError("there is none")

    monkeypatch.setattr(fast_path, "_library", None)
    monkeypatch.setattr(build, "make", refuse)
    assert fast_path._loaded.__wrapped__() is False


def test_without_a_global_lock(monkeypatch):
    """The plans are not shared between threads that Python runs at the same time."""
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    assert fast_path._loaded.__wrapped__() is False


def test_threads():
    """Calls of several threads, while plans come and go: each launch has its own call's arguments."""
    calls = {m: call_of("dense", m) for m in range(1, 9)}
    addresses = {m: call["out"].data_ptr() for m, call in calls.items()}
    launches = dict.fromkeys(calls, 0)

    def run(m):
        for number in range(300):
            if number % 50 == m:
                fast_path.forget()
            add("dense", m)
            launches[m] += fast_path.queue["dense"](*calls[m].values()) is None

    threads = [threading.Thread(target=run, args=(m,)) for m in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wrong = [one for one in notes if one["d"] != addresses[one["m"]]]
    assert not wrong and len(notes) == sum(launches.values()) > 1000


@pytest.mark.parametrize("structure", [fast_path.Api, fast_path.Key])
def test_fields(structure):
    """The fields are those of the C++ structures, in the same order."""
    text = re.search(
        rf"struct {structure.__name__} {{\n(.*?)(\n}};|bool operator)", fast_path.SOURCE.read_text(), re.S
    )[1]
    text = re.sub(r"//[^\n]*", "", text)
    found = []
    for declaration in text.split(";"):
        if function := re.search(r"\(\*(\w+)\)\(", declaration):
            found.append(function[1])
        elif declaration.strip():
            found += re.findall(r"\*?(\w+)(?:,|$)", declaration.strip().partition(" ")[2])
    assert found == names(structure)
