"""The products as operators of torch: compiled, exported, traced, profiled, captured. On the CPU, and on a
GPU if there is one."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gemm_ladder as gl
import numpy as np
import pytest
import torch
from cases import place
from gemm_ladder import api, ops
from gemm_ladder.casts import functions
from gemm_ladder.casts.kernel import KERNELS
from gemm_ladder.lab.operands import normal
from gemm_ladder.training import ops as training_ops
from grouped_cases import contiguous, masked, psum
from opcheck import byte_wise
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

Tensors = tuple[torch.Tensor, ...]


def example(kind: str, device: str) -> tuple[object, ...]:
    """Arguments of a kind's operator."""
    if kind == "dense":
        placed = place(normal(np.random.default_rng(0), 5, 136, 256), device)
        return (*placed.lhs, *placed.rhs, placed.out)
    call = {
        "contiguous": lambda: contiguous([128, 128], 136, 256, device),
        "masked": lambda: masked([5, 0, 7], 8, 136, 256, device),
        "psum": lambda: psum([100, 3], 136, 256, device),
    }[kind]()
    return (*call.lhs, *call.rhs, call.out, call.rows, *([64] if kind in ("masked", "psum") else []))


def product(kind: str, a, sfa, b, sfb, out: torch.Tensor, *rest) -> None:
    """The public function of a kind."""
    if kind == "dense":
        gl.fp8_gemm_nt((a, sfa), (b, sfb), out)
    elif kind == "masked":
        gl.m_grouped_fp8_gemm_nt_masked((a, sfa), (b, sfb), out, *rest)
    elif kind == "contiguous":
        gl.m_grouped_fp8_gemm_nt_contiguous((a, sfa), (b, sfb), out, *rest)
    else:
        gl.m_grouped_fp8_gemm_nt_contiguous(
            (a, sfa), (b, sfb), out, rest[0], use_psum_layout=True, expected_m_for_psum_layout=rest[1]
        )


def doubled(kind: str) -> Callable[..., torch.Tensor]:
    """A function whose output is new: the product, times two."""

    def function(*arguments: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(arguments[4])
        product(kind, *arguments[:4], out, *arguments[5:])
        return out * 2

    return function


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("kind", ops.NAMES)
def test_compile(kind: str, backend: str, device: str) -> None:
    arguments = example(kind, device)
    expected = doubled(kind)(*arguments)
    torch._dynamo.reset()
    compiled = torch.compile(doubled(kind), backend=backend, fullgraph=True)
    assert torch.equal(compiled(*arguments), expected)


@pytest.mark.slow
def test_compile_with_inductor(device: str) -> None:
    arguments = example("dense", device)
    torch._dynamo.reset()
    compiled = torch.compile(doubled("dense"), fullgraph=True)
    assert torch.equal(compiled(*arguments), doubled("dense")(*arguments))


def test_compile_writes_the_output_that_is_given(device: str) -> None:
    """Also where it is not made inside: the case that used to end in an error of NumPy's."""
    arguments = example("dense", device)
    expected = doubled("dense")(*arguments)
    torch._dynamo.reset()
    torch.compile(lambda: product("dense", *arguments), backend="eager", fullgraph=True)()
    assert torch.equal(arguments[4] * 2, expected)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("kind", ops.NAMES)
def test_export(kind: str, strict: bool, device: str) -> None:
    class Module(torch.nn.Module):
        def forward(self, *arguments: torch.Tensor) -> torch.Tensor:
            return doubled(kind)(*arguments)

    arguments = example(kind, device)
    exported = torch.export.export(Module(), arguments, strict=strict)
    name = f"gemm_ladder.{ops.NAMES[kind]}.default"
    assert name in [str(node.target) for node in exported.graph.nodes]
    assert torch.equal(exported.module()(*arguments), doubled(kind)(*arguments))


LOADS = """
import gemm_ladder, sys, torch

def registered():
    names = {schema.name for schema in torch._C._jit_get_all_schemas()}
    return {name for name in names if name.startswith("gemm_ladder::")}

program, arguments, expected = (torch.load(path, weights_only=False) if index else torch.export.load(path)
                                for index, path in enumerate(sys.argv[1:4]))
assert torch.equal(program.module()(*arguments), expected)
found = registered()
for module in sys.argv[4:]:
    __import__(module)
assert registered() == found, registered() - found
"""


def test_an_exported_program_in_another_process(tmp_path: Path) -> None:
    """Which finds every operator, whichever module defines it, having imported the package alone."""

    class Module(torch.nn.Module):
        def forward(self, x: torch.Tensor, b: torch.Tensor, sfb: torch.Tensor) -> torch.Tensor:
            a, sfa = gl.utils.per_token_cast_to_fp8(x)
            d = torch.empty(len(x), len(b), dtype=torch.bfloat16)
            gl.fp8_gemm_nt((a, gl.get_mn_major_tma_aligned_tensor(sfa)), (b, sfb), d)
            return d

    arguments = (torch.randn(8, 256), *example("dense", "cpu")[2:4])
    torch.export.save(torch.export.export(Module(), arguments), tmp_path / "program.pt2")
    torch.save(arguments, tmp_path / "arguments.pt")
    torch.save(Module()(*arguments), tmp_path / "expected.pt")
    package = Path(gl.__file__).parent
    modules = [
        ".".join(("gemm_ladder", *path.relative_to(package).with_suffix("").parts))
        for path in package.rglob("*.py")
        if "define(" in (text := path.read_text()) or "define_product(" in text
    ]
    assert {ops.__name__, training_ops.__name__, "gemm_ladder.utils.math"} <= set(modules)
    assert api.__name__ not in modules
    files = [tmp_path / name for name in ("program.pt2", "arguments.pt", "expected.pt")]
    command = [sys.executable, "-c", LOADS, *map(str, files), *modules]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


FINDS = """
assert "gemm_ladder.ops" not in sys.modules
for name in names:
    assert str(getattr(torch.ops.gemm_ladder, name)) == f"gemm_ladder.{name}"
assert not hasattr(torch.ops.gemm_ladder, "nothing")
"""


@pytest.mark.parametrize("first", ["gemm_ladder, sys, torch", "sys, torch, gemm_ladder"])
def test_operators_are_found_when_they_are_asked_for(first: str) -> None:
    """Also where torch is imported later than the package, which does not import it."""
    casts = {functions._operator(kernel.kind, kernel.before) for kernel in KERNELS}
    names = [*casts, *ops.NAMES.values(), *training_ops.NAMES, *CASTS]
    names += ["fp8_linear", "combine_rows", "in_masked_layout"]
    run = subprocess.run(
        [sys.executable, "-c", f"import {first}; names = {names}{FINDS}"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


STAND_IN = """
import importlib, sys, types

import gemm_ladder
sys.modules["torch._ops"] = types.ModuleType("torch._ops")
sys.modules["torch._ops"].ops = types.ModuleType("ops")
import colorsys
importlib.reload(gemm_ladder)
assert sum(type(one).__name__ == "_Watcher" for one in sys.meta_path) == 1
"""


def test_what_stands_in_for_torch_is_left_alone() -> None:
    run = subprocess.run([sys.executable, "-c", STAND_IN], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("kind", ops.NAMES)
def test_opcheck(kind: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's own tests of an operator: its schema says what it writes, and fake tensors have an answer."""
    byte_wise(monkeypatch)
    operator = getattr(torch.ops.gemm_ladder, ops.NAMES[kind]).default
    found = torch.library.opcheck(operator, example(kind, device))
    assert set(found.values()) == {"SUCCESS"} and len(found) >= 4


def gradients(device: str) -> dict[str, tuple[object, ...]]:
    """Arguments of the training operators."""
    rng = np.random.default_rng(0)
    a, b = (torch.from_numpy(rng.standard_normal((rows, 384), np.float32)).to(device) for rows in (64, 72))
    (a, sfa), (b, sfb) = (gl.utils.per_token_cast_to_fp8(x) for x in (a, b))
    groups = [x[:, : 128 * k].contiguous().view(-1) for x in (a, b) for k in (1, 2)]
    d = torch.ones(2, 64, 72, device=device)
    flat_a, flat_b = torch.cat(groups[:2]), torch.cat(groups[2:])
    return {
        "fp8_gemm_nt_1d1d": (a, sfa, b, sfb, d[0], d[1], False, False),
        "k_grouped_fp8_gemm_nt_contiguous": (flat_a, sfa, flat_b, sfb, d, [128, 256], None, True, 128, False),
    }


def gradient(name: str, out: torch.Tensor, a, sfa, b, sfb, *rest) -> None:
    """The public function of a training operator; `out` is added to."""
    if name == "fp8_gemm_nt_1d1d":
        gl.fp8_gemm_nt((a, sfa), (b, sfb), out, c=out, recipe=(1, 1, 128))
    else:
        gl.k_grouped_fp8_gemm_nt_contiguous((a, sfa), (b, sfb), out, rest[1], c=out)


@pytest.mark.parametrize("name", training_ops.NAMES)
def test_training_operators(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = gradients(device)[name]
    byte_wise(monkeypatch)
    found = torch.library.opcheck(getattr(torch.ops.gemm_ladder, name).default, arguments)
    assert set(found.values()) == {"SUCCESS"} and len(found) >= 4

    def added(*given: torch.Tensor) -> torch.Tensor:
        out = torch.ones_like(given[4])
        gradient(name, out, *given)
        return out * 2

    expected = added(*arguments)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(added, backend="aot_eager", fullgraph=True)(*arguments), expected)
    out = torch.ones_like(arguments[4])
    with torch.profiler.profile() as profile:
        gradient(name, out, *arguments)
    assert f"gemm_ladder::{name}" in [one.key for one in profile.key_averages()]
    assert torch.equal(out * 2, expected)
    before = out._version
    gradient(name, out, *arguments)
    assert out._version > before
    with pytest.raises(gl.GemmLadderError, match=r"^sfa requires grad, which no kernel computes; "):
        gradient(name, out, arguments[0], arguments[1].requires_grad_(), *arguments[2:])


CASTS = ("per_token_cast_to_fp8", "per_block_cast_to_fp8", "per_channel_cast_to_fp8")


@pytest.mark.parametrize("name", CASTS)
def test_casts(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators where they are seen; compiled, they are what they are made of, which one kernel can do."""
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((130, 300), np.float32)).to(device)
    byte_wise(monkeypatch)
    found = torch.library.opcheck(getattr(torch.ops.gemm_ladder, name).default, (x, True, 128))
    assert set(found.values()) == {"SUCCESS"} and len(found) >= 4
    cast = getattr(gl.utils, name)
    expected = cast(x, use_ue8m0=True)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: cast(x, use_ue8m0=True), backend="aot_eager", fullgraph=True)(x)
    with torch.profiler.profile() as profile:
        profiled = cast(x, use_ue8m0=True)
    assert f"gemm_ladder::{name}" in [one.key for one in profile.key_averages()]
    for again in (compiled, profiled):
        assert all(
            torch.equal(one.float(), other.float()) for one, other in zip(again, expected, strict=True)
        )
    with FakeTensorMode() as mode:
        codes, scales = cast(mode.from_tensor(x))
        assert (codes.shape, scales.shape) == (expected[0].shape, expected[1].shape)


@pytest.mark.parametrize("shape", [(5, 3), (2, 8, 3)])
def test_layout_of_scales(shape: tuple[int, ...], device: str) -> None:
    sf = torch.arange(float(np.prod(shape)), device=device).view(shape)
    operator = torch.ops.gemm_ladder.get_mn_major_tma_aligned_tensor.default
    expected = gl.get_mn_major_tma_aligned_tensor(sf)
    for given in (sf, expected):
        assert set(torch.library.opcheck(operator, (given,)).values()) == {"SUCCESS"}
    torch._dynamo.reset()
    compiled = torch.compile(gl.get_mn_major_tma_aligned_tensor, backend="aot_eager", fullgraph=True)
    for given in (sf, expected):
        assert torch.equal(compiled(given), sf) and compiled(given).stride() == expected.stride()


@pytest.mark.parametrize("kind", ops.NAMES)
def test_fake_tensors(kind: str, device: str) -> None:
    """Inside of their mode, and outside of it."""
    arguments = example(kind, device)
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for x in arguments]
        product(kind, *fake)
    product(kind, *fake)


WRONG = {
    "its numbers": (lambda x: x.tolist(), "A is of type list; a torch.Tensor is needed"),
    "in NumPy": (lambda x: x.float().cpu().numpy(), "A is of type ndarray; a torch.Tensor is needed"),
    "nothing": (lambda x: None, "A is of type NoneType; a torch.Tensor is needed"),
    "on no device": (lambda x: x.to("meta"), "A is on meta and sfa on {}; one device is needed for all"),
    "sparse": (
        lambda x: x.float().to_sparse(),
        "A has layout torch.sparse_coo; a dense tensor (torch.strided) is needed",
    ),
    "of another type": (lambda x: x.float(), "A is float32; float8_e4m3fn is needed"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arguments_that_a_profiler_sees(wrong: str, device: str) -> None:
    """They are refused in the same sentences as without one, and not in torch's."""
    change, message = WRONG[wrong]
    calls = {kind: (example(kind, device), product) for kind in ops.NAMES}
    calls |= {name: (arguments, gradient) for name, arguments in gradients(device).items()}
    for name, ((a, *others), function) in calls.items():
        before = others[3].clone()
        with torch.profiler.profile(), pytest.raises(gl.GemmLadderError) as refused:
            function(name, *(() if function is product else (others[3],)), change(a), *others)
        assert str(refused.value) == message.format(others[0].device), name
        assert torch.equal(others[3].view(torch.uint8), before.view(torch.uint8))


@pytest.mark.parametrize("kind", ops.NAMES)
def test_fake_tensors_that_do_not_fit(kind: str, device: str) -> None:
    arguments = example(kind, device)
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for x in arguments]
        for index, change, message in (
            (0, lambda x: x[..., :128], r"^B has shape .*; .* is needed: "),
            (1, torch.Tensor.half, r"^sfa is float16; float32 is needed$"),
            (4, lambda x: x[0], r"^out has shape .*; .* needed"),
        ):
            spoiled = [change(x) if number == index else x for number, x in enumerate(fake)]
            with pytest.raises(gl.GemmLadderError, match=message):
                product(kind, *spoiled)


def test_symbols_for_sizes(device: str) -> None:
    """make_fx may trace with them, and then the sizes are not compared."""
    arguments = example("dense", device)
    traced = make_fx(doubled("dense"), tracing_mode="symbolic")(*arguments)
    assert torch.equal(traced(*arguments), doubled("dense")(*arguments))


def test_a_real_tensor_beside_those_without_memory(device: str) -> None:
    """Torch calls what it has for FakeTensors, which would leave the real output as it was."""
    a, *others = example("dense", device)
    operator = torch.ops.gemm_ladder.fp8_gemm_nt
    operator(*(x.to("meta") for x in (a, *others)))
    with pytest.raises(gl.GemmLadderError, match=r"^the tensors are on meta and \w+.*; one device is needed"):
        operator(a.to("meta"), *others)


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # which is deprecated, and still in use
@pytest.mark.parametrize("kind", ops.NAMES)
def test_jit_trace(kind: str, device: str) -> None:
    """A trace has the operator, with which other operands have their product."""
    arguments = example(kind, device)
    doubled(kind)(*arguments)
    expected_m = arguments[6:]
    traced = torch.jit.trace(
        lambda *tensors: doubled(kind)(*tensors, *expected_m), arguments[:6], check_trace=False
    )
    other = (arguments[0].view(torch.uint8).flip(-1).view(torch.float8_e4m3fn), *arguments[1:6])
    assert f"gemm_ladder::{ops.NAMES[kind]}" in str(traced.graph)
    assert torch.equal(traced(*other), doubled(kind)(*other, *expected_m))


def test_make_fx(device: str) -> None:
    arguments = example("dense", device)
    traced = make_fx(doubled("dense"))(*arguments)
    assert "gemm_ladder.fp8_gemm_nt.default" in traced.code
    assert torch.equal(traced(*arguments), doubled("dense")(*arguments))


@pytest.mark.parametrize("kind", ops.NAMES)
def test_a_profile_names_the_operator(kind: str, device: str) -> None:
    arguments = example(kind, device)
    product(kind, *arguments)  # on a GPU the fast path would take the next one
    with torch.profiler.profile(record_shapes=True) as profile:
        product(kind, *arguments)
    events = {one.key: one.input_shapes for one in profile.key_averages(group_by_input_shape=True)}
    shapes = events[f"gemm_ladder::{ops.NAMES[kind]}"]
    assert shapes[0] == [*arguments[0].shape] and shapes[4] == [*arguments[4].shape]


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ops.NAMES)
def test_a_graph_captures_the_operator(kind: str) -> None:
    arguments = example(kind, "cuda")
    expected = doubled(kind)(*arguments)
    torch._dynamo.reset()
    compiled = torch.compile(doubled(kind), backend="aot_eager", fullgraph=True)
    compiled(*arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = compiled(*arguments)
    found.zero_()
    graph.replay()
    assert torch.equal(found, expected)


def test_names_of_kernels() -> None:
    """DeepGEMM's tests time the kernels whose name holds "gemm_"; ours have the product's name in theirs."""
    for file in ("production/gemm.cuh", "training/gemm_1d1d.cuh"):
        text = (Path(gl.__file__).parent / file).read_text()
        names = re.findall(r"__global__[^{]*?(\w+)\(const __grid_constant__", text)
        assert names and all("fp8_gemm_" in name for name in names)


@pytest.mark.gpu
def test_the_kernel_is_named_after_the_product() -> None:
    arguments = example("dense", "cuda")
    product("dense", *arguments)
    with torch.profiler.profile() as profile:
        product("dense", *arguments)
        torch.cuda.synchronize()
    kernels = [one.key for one in profile.key_averages() if one.device_type == torch.autograd.DeviceType.CUDA]
    assert any("fp8_gemm_nt" in name for name in kernels)
    assert 0 < gl.testing.bench_kineto(lambda: product("dense", *arguments), "gemm_", num_tests=3) < 1e-3


def test_inputs_that_require_grad_are_refused_in_operators(device: str) -> None:
    a, sfa, b, sfb, out = example("dense", device)
    with pytest.raises(gl.GemmLadderError, match=r"^sfa requires grad, which no kernel computes; "):
        torch.ops.gemm_ladder.fp8_gemm_nt(a, sfa.requires_grad_(), b, sfb, out)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_inputs_that_require_grad_are_refused_when_compiled(backend: str, device: str) -> None:
    """What torch.compile has made runs without a history for autograd: the refusal comes while it traces."""
    arguments = example("dense", device)
    expected = doubled("dense")(*arguments)
    a, sfa, *others = arguments
    scales = sfa.clone().requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(doubled("dense"), backend=backend, fullgraph=True)
    with pytest.raises(RuntimeError, match=r"sfa requires grad, which no kernel computes; sfa\.detach"):
        compiled(a, scales, *others)

    def without_gradients(scales: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            found = doubled("dense")(a, scales, *others)
        return found * scales.sum()

    found = torch.compile(without_gradients, backend=backend, fullgraph=True)(scales)
    assert torch.equal(found, expected * scales.sum())
    found.sum().backward()
    assert scales.grad is not None


DISTRIBUTED = """
import gemm_ladder, torch
from torch.distributed.tensor import DTensor, Replicate, init_device_mesh

torch.distributed.init_process_group("gloo", init_method="file://{file}", rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))
sizes = (16, 256), (16, 2), (64, 256), (1, 2), (16, 64)
a, sfa, b, sfb, d = (DTensor.from_local(torch.zeros(size), mesh, [Replicate()]) for size in sizes)
try:
    gemm_ladder.fp8_gemm_nt((a, sfa), (b, sfb), d)
except gemm_ladder.errors.InputError as error:
    print(error)
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_tensors_of_many_devices(tmp_path: Path) -> None:
    program = DISTRIBUTED.format(file=tmp_path / "rendezvous")
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout.strip() == (
        "A is a DTensor, which may lie on many devices; one device's, to_local(), is needed"
    ), run.stderr
