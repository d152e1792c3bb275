"""The fast path, without a GPU: plans for CPU tensors are added, with a launcher that notes its arguments."""

from __future__ import annotations

import ctypes
import functools
import re

import gemm_ladder as gl
import numpy as np
import pytest
import torch
from call_arguments import GROUPS, MAX_M, Arguments, K, M, N, grouped_arguments, misaligned
from cases import place
from gemm_ladder import build, checks, ops, scales, settings
from gemm_ladder.arguments import KINDS, GroupedArgs, align, row_stride
from gemm_ladder.errors import InputError, LaunchError
from gemm_ladder.lab.operands import normal
from gemm_ladder.production import fast_path
from torch.utils.flop_counter import FlopCounterMode

EXPECTED_M, NUM_SMS = 7, 99
HINTED = ("masked", "psum")  # the layouts whose calls have an expected m

PUBLIC = {
    "dense": gl.fp8_gemm_nt,
    "contiguous": gl.m_grouped_fp8_gemm_nt_contiguous,
    "masked": gl.m_grouped_fp8_gemm_nt_masked,
    "psum": functools.partial(
        gl.m_grouped_fp8_gemm_nt_contiguous, use_psum_layout=True, expected_m_for_psum_layout=EXPECTED_M
    ),
}

CPU = torch.device("cpu")

notes: list[dict[str, int]] = []
refusal = ctypes.create_string_buffer(b"no such luck")
answer: list[int | None] = [None]


@ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(GroupedArgs))
def launcher(arguments):
    """Stands for the launcher of a kernel, and notes what it is given."""
    notes.append({name: getattr(arguments.contents, name) for name in names(GroupedArgs)})
    return answer[0]


def names(structure: type[ctypes.Structure]) -> list[str]:
    return [field[0] for base in reversed(structure.__mro__) for field in base.__dict__.get("_fields_", ())]


@pytest.fixture(autouse=True, params=["torch's C++ functions", "Python's functions"])
def no_plans(request):
    """Every test runs with and without what torch may lack."""
    assert fast_path.load(), "fast_path.cpp is not built"
    api = fast_path._api()
    for field in (*fast_path._TORCH_CPP, *fast_path._OFFSETS):
        assert getattr(api, field), f"this torch lacks {field}"
        if request.param == "Python's functions":
            setattr(api, field, 0)
    fast_path._library.gemm_ladder_queue_fill(ctypes.byref(api))
    fast_path.forget()
    notes.clear()
    answer[0] = None
    yield
    fast_path.forget()
    fast_path._library.gemm_ladder_queue_fill(ctypes.byref(fast_path._api()))


def call_of(layout: str, m: int = M) -> Arguments:
    if layout != "dense":
        return grouped_arguments(layout)
    placed = place(normal(np.random.default_rng(0), m, N, K))
    return Arguments(lhs=placed.lhs, rhs=placed.rhs, out=placed.out)


def add(layout: str, m: int | None = None, n: int = N, k: int = K, last: int = 0, sms: int = NUM_SMS) -> None:
    groups, expected_m = 1 if layout == "dense" else GROUPS, EXPECTED_M if layout in HINTED else 0
    m = m or (MAX_M if layout == "masked" else M)
    fast_path.add(CPU, layout, (m, last or m), n, k, groups, expected_m, launcher, sms, (0, 128))


def queue(layout: str, arguments: Arguments) -> dict[str, int] | None:
    """The arguments of the launch, or None if nothing was launched."""
    result = ask(layout, arguments)
    assert (result, len(notes)) in ((None, 1), (False, 0), (True, 0))
    return notes.pop() if notes else None


def ask(layout: str, arguments: Arguments) -> fast_path.Queued:
    """What the fast path answers."""
    further = (EXPECTED_M,) if layout in HINTED else ()
    return fast_path.queue[layout](*arguments.values(), *further)


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


@pytest.mark.parametrize("layout", KINDS)
def test_storages_that_were_made_smaller(layout):
    """A tensor keeps its size when its storage loses its last bytes, or all."""
    add(layout)
    for which in ("A", "sfa", "B", "sfb", *list(call_of(layout))[2:]):
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
    for which in ("A", "sfa", "B", "sfb", *list(call_of(layout))[2:]):
        call = call_of(layout)
        call.change(which, lambda x: x.to("meta"))
        assert queue(layout, call) is None


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


def test_lazily_negated_scales():
    """The imaginary part of a conjugated complex tensor: its numbers in memory have the wrong sign."""
    for m, n, k in ((1, 8, 128), (5, 8, 128), (4, 136, 256)):
        add("dense", m, n, k)
        placed = place(normal(np.random.default_rng(0), m, n, k))
        for which in ("sfa", "sfb"):
            call = Arguments(lhs=placed.lhs, rhs=placed.rhs, out=placed.out)
            assert queue("dense", call)
            call.change(which, lambda x: torch.complex(x, x).conj().imag)
            assert queue("dense", call) is None


class Derived(torch.Tensor):
    """A tensor subclass, whose operators may do anything."""


@pytest.mark.parametrize("layout", KINDS)
def test_what_is_no_operand(layout):
    """What is no plain tensor is left to the checks, and raises nothing here."""
    add(layout)
    for which in ("lhs", "rhs"):
        for change in (list, lambda x: x[:1], lambda x: (*x, x[0]), lambda x: None, lambda x: x[0]):
            call = call_of(layout)
            call.change(which, change)
            assert queue(layout, call) is None
    for which in ("A", "sfb", *list(call_of(layout))[2:]):
        for change in (lambda x: None, lambda x: 3, lambda x: x.as_subclass(Derived)):
            call = call_of(layout)
            call.change(which, change)
            assert queue(layout, call) is None
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


@pytest.mark.parametrize("layout", KINDS)
def test_what_others_want_to_see(layout):
    """Modes, profilers and transforms of torch.func see calls that go through Python; autograd the inputs."""
    add(layout)
    call = call_of(layout)
    with FlopCounterMode(display=False):
        assert queue(layout, call) is None
    with torch.profiler.profile():
        assert queue(layout, call) is None
    assert torch.func.vmap(lambda x: x + (queue(layout, call) is None))(torch.zeros(2)).tolist() == [1, 1]
    assert queue(layout, call)
    for which in ("A", "sfa", "B", "sfb"):
        call = call_of(layout)
        call.change(which, lambda x: x.requires_grad_())
        assert queue(layout, call) is None
        with torch.no_grad():
            assert queue(layout, call)


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
        for change in (torch.Tensor.contiguous, wider(4), lambda x: torch.complex(x, -x).conj().imag):
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
