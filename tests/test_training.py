"""The training kernels and their functions: weight gradients, dense and grouped along K, on both machines."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import gemm_ladder as gl
import numpy as np
import pytest
import torch
from call_arguments import refusal
from gemm_ladder import settings
from gemm_ladder.errors import InputError, LaunchError
from gemm_ladder.ref import emulator
from gemm_ladder.sass import disassembly
from gemm_ladder.training import candidates, launching, operands, products
from gemm_ladder.training import config as configs
from gemm_ladder.training.candidates import CANDIDATES, TO_TUNE, choose
from gemm_ladder.training.config import Config
from training_cases import (
    CONFIGS,
    DEVICE,
    VARIANTS,
    any_finite,
    modelled,
    one_hot,
    place,
    run,
    small_integers,
)

# m, n and k, of few tiles and of many, ragged everywhere; k ends inside a K block, and K blocks are odd.
DENSE = [(128, 128, 128), (1, 4, 16), (300, 264, 400), (257, 392, 1296), (65, 68, 2048)]
GROUPED = [
    ((136, 72), [128, 0, 384, 256]),
    ((300, 260), [0, 640, 0, 0, 128]),
    ((128, 128), [1152]),
    ((64, 200), [128, 128, 1408]),
    ((132, 68), [272, 16, 0, 400]),
]
FUZZ = {"emulator": int(os.environ.get("GEMM_LADDER_FUZZ", "6")), "gpu": 40}
device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


def name(config: Config) -> str:
    return config.name.removeprefix("fp8_gemm_1d1d_")


# ----------------------------------------------------------------------------------------------- the kernels


@pytest.mark.parametrize("config", CONFIGS, ids=name)
def test_launch_is_what_the_configuration_says(config):
    call = place((300, 264), 256).checked()
    with gl.emulator(dry=True) as ran:
        args = launching.arguments(call, num_sms=132)
        assert emulator.launch(config.compile("emulator").lib, args) is None
    (asked,) = ran.launches
    assert (asked.shared_bytes, asked.cluster) == (config.shared_bytes, config.cluster)
    assert (asked.threads, asked.blocks_an_sm, asked.early) == (384, 1, True)
    tiles = -(-300 // config.tile_m) * -(-264 // config.tile_n)
    assert asked.blocks % config.cluster == 0 and tiles <= asked.blocks <= 2 * tiles


@pytest.mark.parametrize("config", CONFIGS, ids=name)
@pytest.mark.parametrize("shape", DENSE, ids=str)
def test_dense(config, shape, machine):
    m, n, k = shape
    for seed, (c, gap) in enumerate([("none", 16), ("d", 0), ("other", 48)]):
        call = place((m, n), k, DEVICE[machine], c, gap=gap)
        run(config, call, seed=seed, num_sms=3)
        call.check()


@pytest.mark.parametrize("config", CONFIGS, ids=name)
@pytest.mark.parametrize(("shape", "ks"), GROUPED, ids=str)
def test_k_grouped(config, shape, ks, machine):
    for seed, (c, gap) in enumerate([("none", 0), ("d", 16), ("other", 0)]):
        call = place(shape, ks, DEVICE[machine], c, gap=gap)
        run(config, call, seed=seed, num_sms=2 + seed)
        call.check()


@pytest.mark.parametrize("config", CONFIGS, ids=name)
@pytest.mark.parametrize("fill", [one_hot, small_integers], ids=["one_hot", "small_integers"])
def test_exact(config, fill, machine):
    """Nothing is rounded, so the result is the reference's: wherever a K block, a row or a column lies."""
    for c in ("none", "d"):
        call = place((260, 136), [384, 128, 640], DEVICE[machine], c, fill)
        run(config, call, seed=7)
        call.check()
        call.check(bits=False)


@pytest.mark.parametrize("config", CONFIGS, ids=name)
def test_repeats_its_bits(config, machine):
    found = []
    for seed in range(4):
        call = place((200, 200), [128, 512], DEVICE[machine], "d", any_finite)
        run(config, call, seed=seed)
        found.append(call.found())
    for bits in found[1:]:
        np.testing.assert_array_equal(bits, found[0])


def test_values_that_are_not_finite(machine):
    """NaN and infinities of an operand, a scale or of C reach their row or column, and nothing else."""
    call = place((130, 72), 384, DEVICE[machine], "d")
    (part,) = call.parts
    part.a[3, 200], part.b[5, 0] = 0x7F, 0xFF
    part.sfa[7, 1], part.sfb[11, 2], part.sfa[9, 0] = np.inf, np.nan, 0.0
    for tensor, values in zip((*call.lhs, *call.rhs), (part.a, part.sfa, part.b, part.sfb), strict=True):
        codes = torch.from_numpy(values).to(DEVICE[machine])
        tensor.copy_(codes.view(tensor.dtype))
    call.d[20, 3], call.added[0, 20, 3] = float("-inf"), -np.inf
    run(CONFIGS[0], call)
    with np.errstate(invalid="ignore"):
        expected = modelled(part) + call.added[0]
    assert np.isnan(expected).sum() == 72 + 2 * 130 - 2
    np.testing.assert_array_equal(call.found()[0], expected)


@pytest.mark.parametrize("config", [CONFIGS[0], VARIANTS[0]], ids=name)
def test_touches_nothing_outside_its_tensors(config):
    """Nor reads anything outside. The call runs in a process of its own, which such a read would end."""
    index = str(CONFIGS.index(config))
    ran = subprocess.run([sys.executable, __file__, index], capture_output=True, text=True)
    assert ran.stdout.endswith("done\n"), f"exit status {ran.returncode}\n{ran.stdout}{ran.stderr}"


def fenced_call(config: Config, at_end: bool) -> None:
    """A grouped call on the emulator with every tensor between pages without access."""
    from fenced_memory import fenced

    call = place((132, 68), [128, 0, 272], c="d")

    def between_fences(tensor: torch.Tensor) -> torch.Tensor:
        turned = tensor.mT if tensor.dtype == torch.float32 and tensor.dim() == 2 else tensor
        plain = turned.view(torch.uint8) if turned.dtype == torch.float8_e4m3fn else turned
        copy = torch.from_numpy(fenced(plain.numpy(), at_end)).view(turned.dtype)
        return copy.mT if turned is not tensor else copy

    lhs, rhs = (tuple(map(between_fences, pair)) for pair in (call.lhs, call.rhs))
    d = between_fences(call.d.contiguous())
    assert call.ks is not None
    launching.run(config, operands.k_grouped(lhs, rhs, d, call.ks, d, operands.K_MULTIPLE))
    call.d.copy_(d)
    call.check()


def random_config(rng: np.random.Generator) -> Config:
    """Any configuration that keeps the rules."""
    while True:
        config = Config.of(
            int(rng.choice([128, 256])),
            32 * int(rng.integers(1, 9)),
            ahead=int(rng.integers(0, 9)),
            share=str(rng.choice(["nothing", "A", "B"])),
            boxes=int(rng.integers(1, 9)),
            band=int(rng.integers(1, 5)),
            across=bool(rng.integers(2)),
            groups=int(rng.integers(1, 5)),
        )
        try:
            return config.check()
        except InputError:
            continue


@pytest.mark.slow
def test_fuzz(machine):
    """Random configurations, each at random sizes. The same on every run."""
    rng = np.random.default_rng(zlib.crc32(machine.encode()))
    for _ in range(FUZZ[machine]):
        config = random_config(rng)
        for case in range(4):
            shape = (int(rng.integers(1, 600)), 4 * int(rng.integers(1, 125)))
            ks = [16 * int(rng.integers(0, 40)) for _ in range(int(rng.integers(1, 6)))]
            c, gap = str(rng.choice(["none", "d", "other"])), 16 * int(rng.integers(3))
            try:
                call = place(shape, ks if case else 16 + ks[0], DEVICE[machine], c, gap=gap)
                run(config, call, seed=int(rng.integers(2**31)), num_sms=int(rng.integers(1, 12)))
                call.check()
            except Exception as error:
                raise AssertionError(f"{config} at {shape}, {ks}, {c}, {gap}") from error


def test_a_kernel_gets_every_group_once():
    """More groups than a launch has room for: two launches, the largest groups first."""
    call = place((64, 64), [128, 256, 0, 384, 128, 640], c="d")
    run(VARIANTS[0], call)
    call.check()
    args = launching.arguments(call.checked(), 4)
    assert [args.groups[i].k for i in range(args.num_groups)] == [640, 384, 256, 128, 128]
    assert [args.groups[i].scale_row for i in range(args.num_groups)] == [7, 3, 1, 0, 6]


# Where something is done before it may be, the schedule decides which of these is found.
TOO_SOON = {"data_race", "read_during_load", "write_during_load", "released_too_early", "wrong answer"}
# The kernel's protocol, broken: what is wrong, the text and its replacement, and what the emulator may find:
# names of faults, or "wrong answer".
BUGS = {
    "the stage is released before B's scales are read": (
        VARIANTS[2],
        "factors.promote(total[slice], partial, slice);\n        }\n        release(ring.empty());",
        "if (slice == kSlices - 1) release(ring.empty());\nfactors.promote(total[slice], partial, slice);\n}",
        {"data_race", "read_during_load", "wrong answer"},
    ),
    "D's boxes are not fenced": (VARIANTS[2], "ptx::fence_proxy_async();", "", {"missing_proxy_fence"}),
    "a box is overwritten before it is read": (
        VARIANTS[2],
        "ptx::cp_async_bulk_wait_group_read<G::kRoundsHeld - 1>();",
        ";",
        {"released_too_early"},
    ),
    "a tile's boxes are overwritten by the next tile's": (
        CONFIGS[-1],
        "if (round == 0)\n                    ptx::cp_async_bulk_wait_group_read<0>();",
        "if (round < 0)\n                    ptx::cp_async_bulk_wait_group_read<0>();",
        {"released_too_early"},
    ),
    "the producer waits for the wrong phase": (
        CONFIGS[-1],
        "ptx::mbarrier_wait_parity(ring.empty(), ring.parity ^ 1);",
        "ptx::mbarrier_wait_parity(ring.empty(), ring.parity);",
        {"deadlock"},
    ),
    "the producer does not wait": (
        CONFIGS[-1],
        "ptx::mbarrier_wait_parity(ring.empty(), ring.parity ^ 1);",
        "",
        {*TOO_SOON, "too_many_arrivals"},
    ),
    "the neighbour's barriers need not exist": (
        VARIANTS[0],
        "meet();  // both CTAs' mbarriers exist before either sends",
        "__syncthreads();",
        {"block_not_started", "mbarrier_uninitialised", "mbarrier_not_visible"},
    ),
    "a CTA may exit while its neighbour sends": (
        VARIANTS[0],
        "if constexpr (G::kCluster > 1) meet();  // no CTA exits",
        "// no CTA exits",
        {"block_ended"},
    ),
    "a stage is released for one CTA only": (
        VARIANTS[0],
        "ptx::mapa(empty, ptx::laneid())",
        "ptx::mapa(empty, ptx::cluster_ctarank())",
        {*TOO_SOON, "deadlock"},  # the other CTA's barrier is never told
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("config", "old", "new", "symptoms"), BUGS.values(), ids=BUGS)
def test_planted_bugs(config, old, new, symptoms, tmp_path):
    """The emulator sees them, on some schedule: the tests above would, too."""
    folder = Path(configs.__file__).parent
    for path in folder.glob("*.cuh"):
        text = path.read_text()
        if path.name == "gemm_1d1d.cuh":
            assert old in text, "the kernel has changed: plant the bug again"
            text = text.replace(old, new, 1)
        (tmp_path / path.name).write_text(text)
    built = gl.build.compile(config.source(), target="emulator", name="bug", extra_flags=[f"-I{tmp_path}"])
    found = set()
    for seed in range(12):
        call = place((300, 200), [1152, 640], c="d")
        try:
            with gl.emulator(seed=seed):
                assert emulator.launch(built.lib, launching.arguments(call.checked(), num_sms=2)) is None
            call.check()
        except gl.EmulatorError as error:
            found.add(error.what)
        except AssertionError:
            found.add("wrong answer")
    assert found and found <= symptoms, found


# ----------------------------------------------------------------------------------------- the machine code


@pytest.fixture(scope="module")
def compiled():
    try:
        gl.build.find_cuda()
    except gl.build.ToolchainError as error:
        pytest.skip(f"needs nvcc: {error}")
    return lambda config: config.compile("cuda")


SASS = [dataclasses.replace(config, groups=64) for config in CANDIDATES] + list(VARIANTS)


@pytest.mark.parametrize("config", SASS, ids=name)
def test_no_warning_and_no_spill(compiled, config):
    built = compiled(config)
    assert not re.findall(r"^.*(?:\bC75\d\d\b|\bwarning\b).*$", built.log, re.MULTILINE | re.IGNORECASE)
    ((kernel, used),) = disassembly.resources(built.log).items()
    assert "fp8_gemm" in kernel
    assert (used.stack_frame, used.spill_stores, used.spill_loads) == (0, 0, 0)


@pytest.mark.parametrize("config", SASS, ids=name)
def test_instructions(compiled, config):
    """FP8 WGMMA is QGMMA. An accumulator takes one FMUL and one FFMA in each K block of the loop's body."""
    if disassembly.find_cuobjdump() is None:
        pytest.skip("needs cuobjdump: pip install nvidia-cuda-cuobjdump")
    (instructions,) = disassembly.disassemble(compiled(config).path).values()
    found = disassembly.count(instructions)
    assert found["LDL"] == found["STL"] == 0
    wgmmas = [i for i, one in enumerate(instructions) if one.mnemonic == "QGMMA"]
    assert not disassembly.count(instructions[wgmmas[0] : wgmmas[-1]])["R2UR"], "descriptors are uniform"
    assert len(wgmmas) == 4 * config.slices
    assert found["FFMA"] == found["FMUL"] == config.slices * config.tile_n // 2
    assert found["UTMAREDG"] == found["UTMASTG"] > 0
    opcodes = {i.opcode for i in instructions if i.mnemonic == "UTMALDG"}
    assert opcodes == {"UTMALDG.2D", "UTMALDG.2D.MULTICAST"} - (
        set() if config.cluster > 1 else {"UTMALDG.2D.MULTICAST"}
    )
    (wgmma,) = {i.opcode for i in instructions if i.mnemonic == "QGMMA"}
    assert wgmma == f"QGMMA.64x{config.tile_n}x32.F32.E4M3.E4M3"
    if dataclasses.replace(config, groups=1) in CANDIDATES:
        # Behind the wait FMULs and FFMAs take turns. Where ptxas puts all FMULs first, the loop is slower by
        # 5 % and more (training/NOTES.md).
        behind = [one.mnemonic for one in instructions[wgmmas[-1] :]]
        arithmetic = "".join(name[1] for name in behind if name in ("FFMA", "FMUL"))
        assert max(map(len, arithmetic.split("M"))) <= 20


# ------------------------------------------------------------------------------------------- configurations


def test_choice():
    """Every call gets a configuration that compiles, with room for its groups up to the most of a launch."""
    for m in (1, 100, 2112, 7168, 24576):
        for groups in (1, 3, 8, 9, 200):
            for num_sms in (1, 132):
                config = choose(m, 1536, [4096] * groups, num_sms).check()
                assert config.groups == {1: 1, 3: 8, 8: 8, 9: 64, 200: 64}[groups]
                assert dataclasses.replace(config, groups=1) in CANDIDATES
    assert choose(128, 64, [128], 132).tile_n == 64, "no tile is wider than D needs"


def test_names():
    assert len(set(TO_TUNE)) == len(TO_TUNE)
    for config in (*CANDIDATES, *TO_TUNE):
        assert Config.parse(config.check().name) == config
        assert Config.parse(name(config).removesuffix("_g1")) == config
    with pytest.raises(InputError, match="'128x128' is no configuration; a name like fp8_gemm_1d1d_128x192"):
        Config.parse("128x128")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tile_m": 64}, "tile_m is 64; 128 or 256 is needed"),
        ({"tile_n": 48}, "tile_n is 48; a multiple of 32 up to 256 is needed"),
        ({"stages": 0}, "stages is 0; 1 or more is needed"),
        ({"ahead": 17}, "ahead is 17; 0 to 16 is needed"),
        ({"share": "K"}, "share is 'K'; nothing, A or B is needed"),
        ({"groups": 65}, "groups is 65; 1 to 64 is needed"),
        ({"ahead": 9, "tile_n": 192}, "registers of .* is 210; at most 208 is needed"),
        ({"tile_m": 256, "tile_n": 160}, "accumulators of .* is 240; at most 192 is needed"),
        ({"stages": 6}, "shared_bytes of .* is .*; at most 232448 is needed"),
    ],
)
def test_configurations_that_cannot_be_compiled(fields, message):
    config = Config(**{"tile_m": 128, "tile_n": 128, "stages": 4, "boxes": 4} | fields)
    with pytest.raises(InputError, match=message):
        config.compile("emulator")


# --------------------------------------------------------------------------------------------- the functions


def check(call) -> None:
    """The bits on a GPU are the kernel's; on the CPU the result is the reference's."""
    call.check(bits=call.d.is_cuda)


@device
@pytest.mark.parametrize("c", ["none", "d", "other"])
def test_fp8_gemm_nt(device, c):
    for options in (
        {"recipe": (1, 1, 128)},
        {"recipe": [1, 1, 128], "compiled_dims": "mn", "disable_ue8m0_cast": True},
        {"recipe_a": (1, 128), "recipe_b": (1, 128)},
    ):
        call = place((130, 68), 400, device, c, gap=16)
        assert gl.fp8_gemm_nt(list(call.lhs), call.rhs, call.d, c=call.c, **options) is None
        check(call)


@device
@pytest.mark.parametrize("turned", [False, True])
def test_first_generation(device, turned):
    call = place((132, 68), 400, device, "d")
    lhs, rhs = ((x, sf.mT if turned else sf) for x, sf in (call.lhs, call.rhs))
    assert gl.wgrad_gemm_fp8_fp8_fp32_nt(lhs, rhs, call.d) is None
    check(call)
    call = place((132, 68), [128, 0, 272, 400], device, "d")
    lhs, rhs = ((x, sf.mT if turned else sf) for x, sf in (call.lhs, call.rhs))
    assert gl.k_grouped_wgrad_gemm_fp8_fp8_fp32_nt(lhs, rhs, call.d, call.ks) is None
    check(call)


@device
@pytest.mark.parametrize("c", ["none", "d", "other"])
def test_k_grouped_fp8_gemm_nt_contiguous(device, c):
    function = gl.k_grouped_fp8_gemm_nt_contiguous
    ks = [256, 0, 128]
    on_device = torch.tensor(ks, dtype=torch.int32, device=device)
    for arguments, options in (
        ((ks, on_device), {}),
        (
            (),
            {"ks_cpu": tuple(ks), "grouped_layout": on_device, "recipe": (1, 1, 128), "compiled_dims": "mn"},
        ),
        ((torch.tensor(ks),), {"use_psum_layout": False, "epilogue": None}),
    ):
        call = place((132, 68), ks, device, c)
        assert function(call.lhs, call.rhs, call.d, *arguments, c=call.c, **options) is None
        check(call)


@device
@pytest.mark.parametrize("c", ["none", "d", "other"])
def test_nothing_to_multiply(device, c):
    """k = 0 gives C or zeros; without rows or columns nothing is written."""
    call = place((130, 68), 0, device, c)
    gl.fp8_gemm_nt(call.lhs, call.rhs, call.d, c=call.c, recipe=(1, 1, 128))
    check(call)
    call = place((130, 68), [0, 0], device, c)
    gl.k_grouped_fp8_gemm_nt_contiguous(call.lhs, call.rhs, call.d, [0, 0], c=call.c)
    check(call)
    for shape in ((0, 68), (130, 0)):
        call = place(shape, 128, device, c)
        gl.fp8_gemm_nt(call.lhs, call.rhs, call.d, c=call.c, recipe=(1, 1, 128))
        assert call.found().size == 0
        call = place(shape, [128, 0], device, c)
        gl.k_grouped_fp8_gemm_nt_contiguous(call.lhs, call.rhs, call.d, [128, 0], c=call.c)
        assert call.found().size == 0


@device
def test_other_strides_of_scales_and_of_c(device):
    call = place((130, 68), 512, device, "other")
    (a, sfa), (b, sfb) = call.lhs, call.rhs
    contiguous, negated = sfa.contiguous(), torch._neg_view(-sfb)
    c = call.c.mT.contiguous().mT
    gl.fp8_gemm_nt((a, contiguous), (b, negated), call.d, c=c, recipe=(1, 1, 128))
    check(call)


def test_one_row_may_have_any_stride(machine):
    call = place((1, 68), 272, DEVICE[machine])
    a, d = (
        call.lhs[0].as_strided((1, 272), (5, 1)),
        call.d.as_strided((1, 68), (3, 1), call.d.storage_offset()),
    )
    launching.run(CONFIGS[-1], operands.dense((a, call.lhs[1]), call.rhs, d, None))
    call.check()


@pytest.mark.gpu
def test_a_cuda_graph(settings_restored):
    """A kernel that is not loaded cannot be captured, and then D stays as it was. A loaded one can."""
    gl.set_num_sms(17)  # none of the tests' own numbers, so that the choice is not theirs
    call = place((300, 136), 512, "cuda", "d")
    launching._libraries.clear()
    before = call.d.clone()
    stream = torch.cuda.Stream()

    def capture() -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            gl.fp8_gemm_nt(call.lhs, call.rhs, call.d, c=call.c, recipe=(1, 1, 128))
        return graph

    remedy = r"gemm_ladder\.precompile\(n=136, k=512, max_m=300, recipe=\(1, 1, 128\)\)"
    with pytest.raises(LaunchError, match=f"a CUDA graph is being captured .*{remedy} is needed"):
        capture()
    torch.cuda.synchronize()
    assert torch.equal(call.d, before)
    assert gl.precompile(136, 512, max_m=300, recipe=(1, 1, 128)) == candidates.all_for(1)
    capture().replay()
    torch.cuda.synchronize()
    call.check()


@pytest.mark.gpu
def test_another_number_of_sms(settings_restored):
    for num_sms in (1, 2, 50):
        settings.set_num_sms(num_sms)
        call = place((600, 520), [256, 128], "cuda", "d")
        gl.k_grouped_fp8_gemm_nt_contiguous(call.lhs, call.rhs, call.d, [256, 128], c=call.c)
        call.check()


# ---------------------------------------------------------------------------------------------- the refusals


def dense_call(**changes):
    """(function, arguments, options) of a call that would be right without `changes` of its tensors."""
    call = place((8, 12), 256, c="other")
    tensors = {
        "a": call.lhs[0],
        "sfa": call.lhs[1],
        "b": call.rhs[0],
        "sfb": call.rhs[1],
        "d": call.d,
        "c": call.c,
    }
    tensors |= {key: change(tensors[key]) if callable(change) else change for key, change in changes.items()}
    arguments = ((tensors["a"], tensors["sfa"]), (tensors["b"], tensors["sfb"]), tensors["d"])
    return arguments, {"c": tensors["c"], "recipe": (1, 1, 128)}


def shifted(tensor: torch.Tensor, elements: int) -> torch.Tensor:
    """The same numbers in memory that begins `elements` further on."""
    size = tensor.numel() + 64
    return torch.zeros(size, dtype=tensor.dtype)[elements : elements + tensor.numel()].view(tensor.shape)


REFUSALS = {
    "d's type": ({"d": lambda d: d.bfloat16()}, "D is bfloat16; float32 is needed"),
    "A's type": ({"a": lambda a: a.float()}, "A is float32; float8_e4m3fn is needed"),
    "c's type": ({"c": lambda c: c.double()}, "C is float64; float32 is needed"),
    "k": (
        {"a": lambda a: a[:, :136], "b": lambda b: b[:, :136]},
        "k is 136; a multiple of 16 is needed",
    ),
    "n": (
        {
            "b": lambda b: b[:11],
            "sfb": lambda sf: sf[:11],
            "d": lambda d: d[:, :11],
            "c": lambda c: c[:, :11],
        },
        "n is 11; a multiple of 4 is needed",
    ),
    "B's k": ({"b": lambda b: b[:, :128]}, r"B has shape \[12, 128\]; \[12, 256\] is needed"),
    "sfa": ({"sfa": lambda sf: sf[:, :1]}, r"sfa has shape \[8, 1\]; \[8, 2\] is needed"),
    "sfa turned": ({"sfa": lambda sf: sf.mT}, r"sfa has shape \[2, 8\]; \[8, 2\] is needed"),
    "sfb": ({"sfb": torch.ones(1, 2)}, r"sfb has shape \[1, 2\]; \[12, 2\] is needed: \[n, K blocks\]"),
    "d's shape": ({"d": lambda d: d[:, :8]}, r"D has shape \[8, 8\]; \[8, 12\] is needed"),
    "c's shape": ({"c": lambda c: c[0]}, r"C has shape \[12\]; \[8, 12\] is needed"),
    "A's columns": (
        {"a": torch.zeros(256, 8).to(torch.float8_e4m3fn).T},
        "contiguous rows that do not overlap",
    ),
    "A's rows overlap": (
        {"a": lambda a: a.as_strided((8, 256), (16, 1))},
        r"A has strides \(16, 1\); contiguous rows that do not overlap, strides \(256 or more, 1\)",
    ),
    "A's stride": (
        {"a": torch.zeros(8, 264).to(torch.float8_e4m3fn)[:, :256]},
        "A has strides .264, 1.; rows that begin a multiple of 16 elements, 16 bytes",
    ),
    "d's stride": (
        {"d": torch.zeros(8, 13)[:, :12]},
        "D has strides .13, 1.; rows that begin a multiple of 4 elements, 16 bytes",
    ),
    "A's address": ({"a": lambda a: shifted(a, 8)}, "A starts at address .*; a multiple of 16 bytes"),
    "d's address": ({"d": lambda d: shifted(d, 1)}, "D starts at address .*; a multiple of 16 bytes"),
    "d negated": ({"d": torch._neg_view(torch.zeros(8, 12))}, "D is a lazily negated view"),
    "d requires grad": ({"d": torch.zeros(8, 12, requires_grad=True)}, "D requires grad"),
    "no pair": ({"a": None}, "A is of type NoneType; a torch.Tensor is needed"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSALS.values(), ids=REFUSALS)
def test_refusals(changes, message):
    arguments, options = dense_call(**changes)
    before = arguments[2].detach().clone()
    assert re.search(message, refusal(gl.fp8_gemm_nt, *arguments, **options))
    assert torch.equal(arguments[2], before) or before.isnan().all()


def test_outputs_that_share_memory():
    call = place((8, 12), 256)
    memory = torch.zeros(4096)
    d, sfa = memory[:96].view(8, 12), memory[64:80].view(2, 8).mT
    message = refusal(gl.fp8_gemm_nt, (call.lhs[0], sfa), call.rhs, d, recipe=(1, 1, 128))
    assert message == "D shares memory with sfa; memory of its own is needed"
    c = memory[4:100].view(8, 12)
    message = refusal(gl.fp8_gemm_nt, call.lhs, call.rhs, d, c=c, recipe=(1, 1, 128))
    assert message == "D shares memory with C; memory of its own is needed"


GROUPED_REFUSALS = {
    "ks": (
        {"ks": None},
        "ks is of type NoneType; a list of ints, the k of each group, is needed on the host",
    ),
    "ks's length": ({"ks": [128]}, "ks has 1 elements; 3, one for each group of D, are needed"),
    "ks's sum": ({"ks": [128, 0, 128]}, r"A has shape \[3072\] and strides \(1,\); 2048 contiguous elements"),
    "ks's multiple": ({"ks": [64, 192, 128]}, r"ks\[0\] is 64; a multiple of 128 is needed"),
    "a negative k": ({"ks": [-128, 384, 128]}, r"ks\[0\] is -128; 0 or more is needed"),
    "both names": ({"ks_cpu": [128]}, "ks and ks_cpu are both given; one, two names of one thing, is needed"),
    "recipe": ({"recipe": (1, 128, 128)}, r"recipe is \(1, 128, 128\); \(1, 1, 128\) is needed"),
    "psum": (
        {"use_psum_layout": True},
        "use_psum_layout is True; False is needed: the k of each group in ks",
    ),
    "epilogue": ({"epilogue": "silu"}, "epilogue is 'silu'; None is needed"),
    "ks_tensor": ({"ks_tensor": [128]}, "ks_tensor is of type list; a torch.Tensor is needed"),
    "ks_tensor's type": ({"ks_tensor": torch.ones(3)}, "ks_tensor is float32; int32 is needed"),
    "ks_tensor's contents": (
        {"ks_tensor": torch.tensor([128, 128, 128], dtype=torch.int32)},
        r"ks_tensor is \[128, 128, 128\]; the same as ks, \[256, 0, 128\], is needed",
    ),
}


@pytest.mark.parametrize(("options", "message"), GROUPED_REFUSALS.values(), ids=GROUPED_REFUSALS)
def test_grouped_refusals(options, message):
    call = place((8, 12), [256, 0, 128])
    options = {"ks": call.ks} | options
    assert re.search(
        message, refusal(gl.k_grouped_fp8_gemm_nt_contiguous, call.lhs, call.rhs, call.d, **options)
    )
    assert call.d.isnan().all()


def test_ks_tensor_is_looked_at_on_a_cpu(monkeypatch):
    """With GEMM_LADDER_CHECK=1 as without: there is no CUDA graph to be asked about."""
    monkeypatch.setattr(settings, "check_contents", True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: pytest.fail("asked CUDA"))
    call = place((8, 12), [256, 0, 128])
    ks_tensor = torch.tensor(call.ks, dtype=torch.int32)
    gl.k_grouped_fp8_gemm_nt_contiguous(call.lhs, call.rhs, call.d, call.ks, ks_tensor)
    call.check(bits=False)


def test_groups_that_overlap():
    call = place((8, 12), [256, 0, 128])
    d = torch.zeros(200).as_strided((3, 8, 12), (48, 12, 1))
    message = refusal(gl.k_grouped_fp8_gemm_nt_contiguous, call.lhs, call.rhs, d, call.ks)
    assert message == "D has strides (48, 12, 1); groups that do not overlap are needed"
    d = torch.zeros(400).as_strided((3, 8, 12), (98, 12, 1))
    message = refusal(gl.k_grouped_fp8_gemm_nt_contiguous, call.lhs, call.rhs, d, call.ks)
    assert message.startswith(
        "D has strides (98, 12, 1); groups that begin a multiple of 4 elements, 16 bytes"
    )


def test_square_scales():
    """As many rows as K blocks: the form that the first generation documents first is meant."""
    call = place((4, 8), 512, c="d")
    gl.wgrad_gemm_fp8_fp8_fp32_nt(call.lhs, call.rhs, call.d)
    call.check(bits=False)
    call = place((4, 8), [128, 384], c="d")
    lhs, rhs = ((x, sf.mT) for x, sf in (call.lhs, call.rhs))
    gl.k_grouped_wgrad_gemm_fp8_fp8_fp32_nt(lhs, rhs, call.d, call.ks)
    call.check(bits=False)


def test_limits_of_the_struct():
    """The parameters of a launch with the most groups fit the 32,764 bytes that CUDA has for them."""
    assert configs.GROUPS[-1] * (3 * 128 + 8) + 2 * 128 + 16 < 32764
    assert products.RECIPE == (1, 1, 128)


if __name__ == "__main__":
    import faulthandler

    faulthandler.enable()
    for fence_at_end in (True, False):
        print("the tensors end at a fence" if fence_at_end else "the tensors begin at a fence", flush=True)
        fenced_call(CONFIGS[int(sys.argv[1])], fence_at_end)
    print("done")
