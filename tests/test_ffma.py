"""The FFMA pass on a freshly compiled s7, read again by cuobjdump: what each mode changes, what is refused.

No GPU is needed. What the bits gain in time is measured on one.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import gemm_ladder as gl
import pytest
from gemm_ladder.errors import InputError
from gemm_ladder.production.config import Config
from gemm_ladder.sass import disassembly, ffma

RUNG = gl.rungs["s8_ffma_interleave"]
MODES = ("compiler", "off", "full", Fraction(9, 16))
REWRITING = MODES[1:]
FFMA_SLOT = 1  # of the three sources, the one with the scale
YIELD, REUSE = 1 << 109, 1 << 122 + FFMA_SLOT


def compiled(source: str | Path, *flags: str) -> Path:
    try:
        gl.build.find_cuda()
        return gl.build.compile(source, target="cuda", extra_flags=flags).path
    except gl.build.ToolchainError as error:
        pytest.skip(f"needs nvcc: {error}")


@pytest.fixture(scope="module")
def library() -> bytes:
    """The rung below, as nvcc makes it."""
    return compiled(RUNG.path).read_bytes()


@pytest.fixture
def file(tmp_path: Path, library: bytes) -> Path:
    """A copy of it, to be rewritten."""
    path = tmp_path / "s8.so"
    path.write_bytes(library)
    return path


@pytest.fixture(scope="module")
def disassembled(library: bytes, tmp_path_factory: pytest.TempPathFactory):
    """disassembled(mode) -> the kernels' instructions in that mode"""
    return in_every_mode(library, tmp_path_factory.mktemp("sass") / "s8.so").__getitem__


def in_every_mode(library: bytes, path: Path) -> dict:
    """The kernels' instructions by mode, None being as nvcc made them; `path` is for the library."""
    if disassembly.find_cuobjdump() is None:
        pytest.skip("needs cuobjdump: pip install nvidia-cuda-cuobjdump")
    found = {}
    for mode in (None, *MODES):
        path.write_bytes(library)
        if mode is not None:
            ffma.apply(path, mode)
        found[mode] = list(one_after_the_other(disassembly.disassemble(path).values()))
    return found


def one_after_the_other(
    kernels: Iterable[list[disassembly.Instruction]],
) -> Iterator[disassembly.Instruction]:
    """Their instructions, with addresses as if they were one kernel."""
    start = 0
    for instructions in kernels:
        for one in instructions:
            yield dataclasses.replace(one, address=start + one.address)
        start += instructions[-1].address + 16


def operands(instruction: disassembly.Instruction) -> list[str]:
    """Registers, without the marks that say how they are read."""
    return instruction.operands.replace(".reuse", "").split(", ")


def runs(instructions: list[disassembly.Instruction]) -> list[list[disassembly.Instruction]]:
    """The promotions: the FFMAs between two groups of WGMMAs."""
    interesting = [one for one in instructions if one.mnemonic in ("FFMA", "QGMMA")]
    groups = itertools.groupby(interesting, key=lambda one: one.mnemonic)
    return [list(group) for mnemonic, group in groups if mnemonic == "FFMA"]


def counts(instructions: list[disassembly.Instruction]) -> tuple[int, int]:
    """How many FFMAs yield, how many reuse a register."""
    found = [one for one in instructions if one.mnemonic == "FFMA"]
    return sum(one.yields for one in found), sum(one.reuse != 0 for one in found)


# ------------------------------------------------------------------ what is changed


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_only_control_bits_of_ffmas_change(disassembled, mode):
    """The same instructions at the same places, every bit but yield and reuse as it was."""
    before, after = disassembled(None), disassembled(mode)
    assert len(before) == len(after) > 1000
    for old, new in zip(before, after, strict=True):
        changed = old.word ^ new.word
        assert changed == 0 or (old.mnemonic == "FFMA" and changed & ~(YIELD | REUSE) == 0)
        assert (old.address, old.predicate, old.opcode) == (new.address, new.predicate, new.opcode)
        assert operands(old) == operands(new)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_only_those_bytes_of_the_file_change(library, mode):
    rewritten = ffma.rewrite(library, mode)
    assert len(rewritten) == len(library)
    changed = {at for at, (old, new) in enumerate(zip(library, rewritten, strict=True)) if old != new}
    start = ffma.kernels(library)[0].start
    promotion = {one.address for run in ffma.promotions(library) for one in run}
    # Byte 13 of an instruction has its bits 104 to 111, byte 15 the bits 120 to 127.
    assert {(at - start) % 16 for at in changed} <= {13, 15}
    assert {at - (at - start) % 16 for at in changed} <= promotion


def test_compiler_is_untouched(file, library):
    """Bytes, and time of change."""
    before = file.stat().st_mtime_ns
    ffma.apply(file, "compiler")
    assert file.read_bytes() == library == ffma.rewrite(library, "compiler")
    assert file.stat().st_mtime_ns == before


def test_off(disassembled):
    """None yields; a scale is kept wherever the next instruction reads it again."""
    instructions = disassembled("off")
    for one, following in itertools.pairwise(instructions):
        if one.mnemonic == "FFMA":
            again = following.mnemonic == "FFMA" and operands(following)[2] == operands(one)[2]
            assert (one.yields, one.reuse) == (False, 2 if again else 0)


def test_full(disassembled):
    """The first use of a scale in a run, and every second one after it, yields; the rest is as in "off"."""
    off = {one.address: one for one in disassembled("off")}
    for run in runs(disassembled("full")):
        uses = Counter()
        for one in run:
            scale = operands(one)[2]
            if uses[scale] % 2 == 0:
                assert (one.yields, one.reuse) == (True, 0)
            else:
                assert one.word == off[one.address].word
            uses[scale] += 1
        assert len(uses) == {64: 2, 96: 6}[len(run)]


def test_fraction(disassembled):
    """9/16 of a run: of 64 the first 36 as in "full", the rest as in "off"."""
    full, off, found = (runs(disassembled(mode)) for mode in ("full", "off", Fraction(9, 16)))
    assert {len(run) for run in found} == {64, 96}
    for as_full, as_off, run in zip(full, off, found, strict=True):
        first = {64: 36, 96: 54}[len(run)]
        assert run == as_full[:first] + as_off[first:]


@pytest.mark.parametrize("mode", REWRITING, ids=str)
def test_reuse_is_never_wrong(disassembled, mode):
    found = kept(disassembled(mode))
    assert set(found) == {FFMA_SLOT} and found[FFMA_SLOT] > 32


def kept(instructions: list[disassembly.Instruction]) -> Counter[int]:
    """How often a factor is kept, by its slot: the next instruction reads it there, no yield is between."""
    found = Counter()
    for one, following in itertools.pairwise(instructions):
        if one.mnemonic == "FFMA" and one.reuse:
            slot = one.reuse.bit_length() - 1
            assert one.reuse == 1 << slot and slot < 2 and not one.yields
            assert following.address == one.address + 16 and following.mnemonic == "FFMA"
            assert operands(following)[1 + slot] == operands(one)[1 + slot] != operands(one)[0]
            found[slot] += 1
    return found


# Kernels whose promotions nvcc 13.0 makes in other forms than the rung's; in which slots their scales are.
OTHER_FORMS = {
    "scales in the first slot too": (Config.of("dense", 24576, 1536, 256, 128), {0, 1}),
    "sums in other registers than the addends": (Config.of("contiguous", 7168, 2048, 256, 128), {1}),
}


@pytest.mark.slow
@pytest.mark.parametrize(("config", "slots"), OTHER_FORMS.values(), ids=OTHER_FORMS)
def test_other_forms(tmp_path, config, slots):
    """Only the two bits of FFMAs change, and no reuse is wrong."""
    found = in_every_mode(compiled(config.source()).read_bytes(), tmp_path / "other.so")
    for mode in REWRITING:
        for old, new in zip(found[None], found[mode], strict=True):
            changed = old.word ^ new.word
            assert changed == 0 or (old.mnemonic == "FFMA" and changed & ~(YIELD | 0b11 << 122) == 0)
        reused = kept(found[mode])
        assert reused[1] > 32
        if gl.build.find_cuda().version.startswith("13.0."):
            assert set(reused) == slots


@pytest.mark.parametrize(("first", "then"), list(itertools.product(MODES, REWRITING)), ids=str)
def test_a_mode_does_not_depend_on_the_last(library, first, then):
    """Twice is once, and "off" then "full" is "full"."""
    assert ffma.rewrite(ffma.rewrite(library, first), then) == ffma.rewrite(library, then)


def test_the_log_counts(file, disassembled):
    for mode in REWRITING:
        yields, reuses = counts(disassembled(mode))
        line = f"ffma, mode {mode}: 736 FFMAs in 11 run(s); {yields} yield, {reuses} reuse the scale\n"
        assert ffma.apply(file, mode) == line


def test_documented_counts(disassembled):
    """The table at the top of ffma.py."""
    if not gl.build.find_cuda().version.startswith("13.0."):
        pytest.skip("the table is of nvcc 13.0")
    for mode in MODES:
        name = f'"{mode}"' if isinstance(mode, str) else str(mode)
        row = re.search(rf"^    {name}: .*?(\d+) +(\d+)$", ffma.__doc__, re.M)
        assert counts(disassembled(mode)) == (int(row[1]), int(row[2])), mode


# ------------------------------------------------------------------ what is refused


def flipped(pick: Callable[[list[ffma.Ffma]], ffma.Ffma], bits: int) -> Callable[[bytes], bytes]:
    """A tampering: bits of one FFMA of the last run."""

    def tamper(library: bytes) -> bytes:
        return patched(library, pick(ffma.promotions(library)[-1]), bits)

    return tamper


def patched(library: bytes, one: ffma.Ffma, bits: int) -> bytes:
    """With these bits of one FFMA flipped."""
    return library[: one.address] + (one.word ^ bits).to_bytes(16, "little") + library[one.address + 16 :]


def with_scale_from(pick: Callable[[list[ffma.Ffma]], int]) -> Callable[[bytes], bytes]:
    """A tampering: one of the two scales of the last run lies in another register."""

    def tamper(library: bytes) -> bytes:
        run = ffma.promotions(library)[-1]
        for one in run:
            if one.scale == run[0].scale:
                library = patched(library, one, (one.scale ^ pick(run)) << 32)
        return library

    return tamper


def overwriting(library: bytes) -> bytes:
    """The first FFMA of the last run writes to what the second one multiplies."""
    run = ffma.promotions(library)[-1]
    return patched(library, run[0], (run[0].destination ^ run[1].accumulator) << 16)


def without_wgmma(library: bytes) -> bytes:
    """All QGMMAs become something else."""
    where = ffma.kernels(library)[-1]
    words = [library[at : at + 16] for at in range(where.start, where.stop, 16)]
    return (
        library[: where.start]
        + b"".join(b"\x18\x79" + word[2:] if word[:2] == b"\xf3\x79" else word for word in words)
        + library[where.stop :]
    )


def narrower_wgmma(library: bytes) -> bytes:
    """All QGMMAs say that they are 64 columns wide, half of what is promoted."""
    return library.replace(b"\x00\x00\xe0\x01", b"\x00\x00\xe0\x00")


def in_fatbin(offset: int, content: bytes) -> Callable[[bytes], bytes]:
    """A tampering: bytes of the fat binary, its entry beginning at 16."""

    def tamper(library: bytes) -> bytes:
        at = library.index(b"\x50\xed\x55\xba\x01\x00") + offset
        return library[:at] + content + library[at + len(content) :]

    return tamper


def for_another_machine(library: bytes) -> bytes:
    """The machine code file says, at its byte 18, that it is for x86-64. It follows its entry's header."""
    at = library.index(b"\x50\xed\x55\xba\x01\x00") + 16
    header = int.from_bytes(library[at + 4 : at + 8], "little")
    return in_fatbin(16 + header + 18, b"\x3e")(library)


def first(run: list[ffma.Ffma]) -> ffma.Ffma:
    return run[0]


TAMPERINGS = {
    "empty": (lambda library: b"", "damaged"),
    "text": (lambda library: b"int main() {}\n" * 99, "not 64-bit ELF"),
    "32-bit": (lambda library: library[:4] + b"\x01" + library[5:], "not 64-bit ELF"),
    "cut": (lambda library: library[: len(library) // 2], "damaged"),
    "no fat binary": (lambda library: library.replace(b".nv_fatbin\0", b".no_fatbin\0"), "0 sections .nv_"),
    "no kernel": (lambda library: library.replace(b".text._Z", b".next._Z"), "has no kernel"),
    "two fat binaries": (in_fatbin(8, b"\0\1"), "not one fat binary"),
    "two entries": (in_fatbin(16 + 8, b"\0\1"), "not one entry"),
    "PTX": (in_fatbin(16, b"\1"), "not machine code for sm_90a"),
    "sm_100": (in_fatbin(16 + 28, b"\x64"), "not machine code for sm_90a"),
    "sm_90": (in_fatbin(16 + 40, b"\x11\0\0"), "not machine code for sm_90a"),
    "compressed": (in_fatbin(16 + 40, b"\x11\x80\x10"), "not machine code for sm_90a"),
    "not CUDA's": (for_another_machine, "not CUDA's"),
    "no WGMMA": (without_wgmma, "each of the WGMMA's 0 accumulators"),
    "another WGMMA": (narrower_wgmma, "each of the WGMMA's [0-9]+ accumulators"),
    "a predicate": (flipped(first, 1 << 12), "of another form"),
    "a constant": (flipped(first, 0b101 << 9), "of another form"),
    "a negated factor": (flipped(first, 1 << 63), "of another form"),
    "flushing denormals": (flipped(first, 1 << 80), "of another form"),
    "reuse of another slot": (flipped(first, 1 << 122), "of another form"),
    "an unknown bit": (flipped(first, 1 << 126), "of another form"),
    "an accumulator twice": (flipped(first, 1 << 24), "accumulators once"),
    "a third scale": (flipped(first, 1 << 32), "not a scale for each"),
    "another addend": (flipped(first, 1 << 64), "add to a register for each"),
    "an accumulator overwritten": (overwriting, "changes what it reads"),
    "a scale overwritten": (with_scale_from(lambda run: run[0].destination), "changes what it reads"),
    "a scale of the WGMMA's": (
        with_scale_from(lambda run: run[-1].accumulator),
        "a scale among its accumulators",
    ),
    "no stall": (flipped(first, 1 << 105), "unknown stall"),
    "a long stall": (flipped(first, 0b1100 << 105), "unknown stall"),
    "one FFMA less": (flipped(first, 0x4), "accumulators once"),
}


def refused(path: Path, message: str) -> None:
    """In every mode, with the file as it was."""
    before = path.read_bytes()
    for mode in MODES:
        with pytest.raises(gl.GemmLadderError, match=message) as refusal:
            ffma.apply(path, mode)
        assert isinstance(refusal.value, ffma.UnknownCodeError) and isinstance(refusal.value, ValueError)
        assert path.read_bytes() == before


@pytest.mark.parametrize(("tamper", "message"), TAMPERINGS.values(), ids=TAMPERINGS)
def test_refuses_what_it_does_not_understand(file, library, tamper, message):
    file.write_bytes(tamper(library))
    assert file.read_bytes() != library
    refused(file, message)


KERNEL = "__global__ void {0}(float* x) {{ x[0] = fmaf(x[1], x[2], x[0]); }}\n"


@pytest.mark.parametrize(
    ("source", "flags", "message"),
    [
        (RUNG.path, ["--compress-mode=size"], "machine code is compressed"),
        (KERNEL.format("k"), ["-gencode=arch=compute_80,code=sm_80"], "not one entry"),
        ("__global__ void k(int* x) { x[0] += 1; }\n", [], "has no promotion"),
        (gl.rungs["s1_naive"].path, [], "FFMA at 0x[0-9a-f]+ is of another form|WGMMA's 0 accumulators"),
    ],
    ids=["compressed", "sm_80 too", "no FFMA", "s1_naive"],
)
def test_refuses_what_else_nvcc_makes(tmp_path, source, flags, message):
    path = tmp_path / "other.so"
    path.write_bytes(compiled(source, *flags).read_bytes())
    refused(path, message)


def test_refuses_the_emulator(tmp_path):
    path = tmp_path / "emulator.so"
    path.write_bytes(gl.rungs["s3_wgmma"].build("emulator").path.read_bytes())
    refused(path, "0 sections .nv_fatbin")


@pytest.mark.parametrize("mode", ["on", "", None, -1, 2, "17/16", "1/0", float("nan"), float("inf"), [1]])
def test_refuses_a_mode_that_there_is_not(file, library, mode):
    for use in (ffma.sass_pass, lambda mode: ffma.apply(file, mode)):
        with pytest.raises(InputError, match=r"^mode is .*a fraction from 0 to 1 is needed$"):
            use(mode)
    assert file.read_bytes() == library


# ------------------------------------------------------------------ the pass checks itself


def promotion(*controls: tuple[int, int, bool, bool]) -> list[ffma.Ffma]:
    """FFMAs from (address, scale, yields, reuses)."""
    return [
        ffma.Ffma(address, scale << 32 | (0 if yields else YIELD) | (REUSE if reuses else 0))
        for address, scale, yields, reuses in controls
    ]


def test_wrong_reuse():
    right = promotion((0, 9, True, False), (16, 9, False, True), (32, 9, False, False))
    assert ffma.wrong_reuse(right) == []
    for wrong in (
        promotion((0, 9, False, True), (32, 9, False, False)),  # something else is between
        promotion((0, 9, False, True), (16, 8, False, False)),  # another scale
        promotion((0, 9, False, True)),  # no FFMA follows
        promotion((0, 9, True, True), (16, 9, False, False)),  # the yield may lose it
    ):
        assert ffma.wrong_reuse(wrong) == wrong[:1]
    overwritten = promotion((0, 9, False, True), (16, 9, False, False))
    overwritten[0] = dataclasses.replace(overwritten[0], word=overwritten[0].word | 9 << 16)
    assert ffma.wrong_reuse(overwritten) == overwritten[:1]


def test_wrong_reuse_is_not_written(file, library, monkeypatch):
    controls = ffma._controls
    monkeypatch.setattr(
        ffma, "_controls", lambda run, share: [(one, False, True) for one, *_ in controls(run, share)]
    )
    with pytest.raises(ffma.UnknownCodeError, match="reuses what may be lost"):
        ffma.apply(file, "full")
    assert file.read_bytes() == library


def test_other_changes_are_not_written(file, library, monkeypatch):
    controls = ffma._controls

    def meddled(run, share):  # with the stall count
        return [
            (dataclasses.replace(one, word=one.word ^ 1 << 106), *rest) for one, *rest in controls(run, share)
        ]

    monkeypatch.setattr(ffma, "_controls", meddled)
    with pytest.raises(ffma.UnknownCodeError, match="changes more than control bits"):
        ffma.apply(file, "full")
    assert file.read_bytes() == library


# ------------------------------------------------------------------ the rung


def words(library: bytes) -> list[int]:
    return [one.word for run in ffma.promotions(library) for one in run]


def test_the_rung_is_built_with_the_pass(library):
    paths = set()
    for mode in MODES:
        built = dataclasses.replace(RUNG, mode=mode).build("cuda")
        assert words(built.path.read_bytes()) == words(ffma.rewrite(library, mode))
        assert f"\nffma, mode {mode}: " in built.log
        paths.add(built.path)
    assert len(paths) == len(MODES)
    assert RUNG.build("cuda").path in paths and RUNG.mode == ffma.DEFAULT_MODE


def test_ids_name_the_mode():
    ids = [ffma.sass_pass(mode).id for mode in MODES]
    assert len(set(ids)) == len(MODES)
    assert ffma.sass_pass(0.5625).id == ffma.sass_pass("9/16").id == ids[-1]


def test_the_emulator_runs_the_rung_below():
    below = gl.rungs["s7_persistent"]
    assert RUNG.source == below.source
    assert RUNG.build("emulator").path == below.build("emulator").path
