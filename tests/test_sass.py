"""The machine code of every rung, compiled for sm_90a here and read, not run: no GPU is needed.

A warning or a wrong opcode costs only speed, so no test of a kernel's results sees it; these tests do.
"""

from __future__ import annotations

import re
from pathlib import Path

import gemm_ladder as gl
import pytest
from gemm_ladder.sass import disassembly

STAGES = sorted((Path(gl.__file__).parent / "stages").glob("*.cu"))
TENSOR_CORE_STAGES = [path for path in STAGES if path.stem != "s1_naive"]


def name(path: Path) -> str:
    return path.stem


@pytest.fixture(scope="module")
def compiled():
    """compiled(path) -> gemm_ladder.build.Built, for sm_90a."""
    try:
        gl.build.find_cuda()
    except gl.build.ToolchainError as error:
        pytest.skip(f"needs nvcc: {error}")
    return lambda path: gl.build.compile(path, target="cuda", name=path.stem)


@pytest.fixture(scope="module")
def disassembled(compiled):
    """disassembled(path) -> {kernel: instructions}"""
    if disassembly.find_cuobjdump() is None:
        pytest.skip("needs cuobjdump: pip install nvidia-cuda-cuobjdump")

    def read(path: Path) -> dict[str, list[disassembly.Instruction]]:
        kernels = disassembly.disassemble(compiled(path).path)
        assert kernels, f"no kernel in {path.name}"
        return kernels

    return read


def test_every_rung_has_its_file():
    files = {rung.path.stem for rung in gl.rungs.values() if rung.path.suffix == ".cu"}
    assert files == {path.stem for path in STAGES}


@pytest.mark.parametrize("path", STAGES, ids=name)
def test_no_warnings(compiled, path):
    """C7510 to C7515 say that ptxas put a wait after every WGMMA: correct, and several times slower."""
    log = compiled(path).log
    assert disassembly.resources(log), f"no `ptxas -v` output in the log:\n{log}"
    assert not re.findall(r"^.*(?:\bC75\d\d\b|\bwarning\b).*$", log, re.MULTILINE | re.IGNORECASE)


@pytest.mark.parametrize("path", STAGES, ids=name)
def test_registers_suffice(compiled, path):
    """Nothing spilled, no array left in local memory because its index was not a constant."""
    for kernel, used in disassembly.resources(compiled(path).log).items():
        assert (used.stack_frame, used.spill_stores, used.spill_loads) == (0, 0, 0), kernel


@pytest.mark.parametrize("path", STAGES, ids=name)
def test_no_local_memory(disassembled, path):
    for kernel, instructions in disassembled(path).items():
        assert len(instructions) > 10, kernel
        found = disassembly.count(instructions)
        assert found["LDL"] == found["STL"] == 0, kernel


@pytest.mark.parametrize("path", TENSOR_CORE_STAGES, ids=name)
def test_tensor_cores(disassembled, path):
    """FP8 WGMMA is QGMMA; at least the four that make 128 of K. The promotion is FFMA, one a register."""
    for kernel, instructions in disassembled(path).items():
        found = disassembly.count(instructions)
        assert found["QGMMA"] >= 4, kernel
        assert found["FFMA"] >= 32, kernel
        for instruction in instructions:
            if instruction.mnemonic == "QGMMA":
                assert re.fullmatch(r"QGMMA\.64x\d+x32\.F32\.E4M3\.E4M3", instruction.opcode)


# The n of a WGMMA in each of a rung's kernels: one kernel, or one for each of its tiles.
WGMMA_N = {
    "s3_wgmma": [128],
    "s4_tma": [128],
    "s5_tma_multicast": [128],
    "s7_persistent": [128, 192],
}


@pytest.mark.parametrize("path", TENSOR_CORE_STAGES, ids=name)
def test_one_kernel_a_tile(compiled, disassembled, path):
    """So that the tests above, which hold for all kernels of a file, have seen each of them."""
    kernels = disassembled(path)
    assert sorted(kernels) == sorted(disassembly.resources(compiled(path).log))
    found = []
    for kernel, instructions in kernels.items():
        assert path.stem in kernel
        (n,) = {int(i.opcode.split("x")[1]) for i in instructions if i.mnemonic == "QGMMA"}
        found.append(n)
    assert sorted(found) == WGMMA_N[path.stem]


@pytest.mark.parametrize("path", STAGES, ids=name)
def test_copy_engine(disassembled, path):
    """Loads through tensor maps from s4 on, one of them multicast from s5 on, and stores in s7."""
    rung = path.stem
    plain = {"UTMALDG.2D"} if rung >= "s4" else set()
    multicast = {"UTMALDG.2D.MULTICAST"} if rung >= "s5" else set()
    for kernel, instructions in disassembled(path).items():
        assert {i.opcode for i in instructions if i.mnemonic == "UTMALDG"} == plain | multicast, kernel
        assert (disassembly.count(instructions)["UTMASTG"] > 0) == (rung >= "s7"), kernel


def test_naive_uses_no_tensor_core(disassembled):
    for instructions in disassembled(STAGES[0]).values():
        assert disassembly.count(instructions)["QGMMA"] == 0
        assert disassembly.count(instructions)["FFMA"] > 0


def test_finds_what_it_looks_for(compiled):
    """The tests above would also pass if nothing could be read. This kernel has what they look for."""
    source = """
    extern "C" __global__ void local_array(float* out, int n) {
        float values[64];
        for (int i = 0; i < 64; ++i) values[i] = out[i * n];
        for (int i = 0; i < n; ++i) out[i] = fmaf(values[(i * i) % 64], 2.0f, out[n - i]);
    }
    extern "C" __global__ void shared_array(float* out) {
        __shared__ float values[64];
        values[threadIdx.x] = out[threadIdx.x];
        __syncthreads();
        out[threadIdx.x] = values[63 - threadIdx.x];
    }
    """
    built = gl.build.compile(source, target="cuda", name="arrays")
    used = disassembly.resources(built.log)
    assert (used["local_array"].stack_frame, used["local_array"].shared) == (256, 0)
    assert (used["shared_array"].stack_frame, used["shared_array"].shared) == (0, 256)
    if disassembly.find_cuobjdump():
        found = disassembly.count(disassembly.disassemble(built.path)["local_array"])
        assert found["LDL"] > 0 and found["STL"] > 0


def test_parse():
    text = """
\t\tFunction : _Z1kPf
\t.headerflags\t@"EF_CUDA_SM90 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM90)"
        /*0000*/                   LDC R1, c[0x0][0x28] ;            /* 0x00000a00ff017b82 */
                                                                     /* 0x000ff00000000800 */
        /*0010*/              @!P0 FFMA R3, R4.reuse, R5, R3 ;       /* 0x0000000504038223 */
                                                                     /* 0x044fc20000000003 */
"""
    load, ffma = disassembly.parse(text)["_Z1kPf"]
    assert (load.opcode, load.operands, load.predicate) == ("LDC", "R1, c[0x0][0x28]", "")
    assert (ffma.address, ffma.mnemonic, ffma.predicate) == (0x10, "FFMA", "@!P0")
    assert ffma.word == 0x044FC20000000003_0000000504038223
    assert (ffma.stall, ffma.yields, ffma.reuse) == (1, True, 1)
    assert (load.stall, load.yields, load.reuse) == (8, False, 0)


def test_parse_refuses_what_it_cannot_read():
    with pytest.raises(ValueError, match="not an instruction"):
        disassembly.parse("\t\tFunction : k\n  /*0000*/  FFMA R3, R4, R5, R3 ;  // nothing after it\n")
