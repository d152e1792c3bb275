"""Timelines: the stamps, the spans that both machines' records become, the trace file, the pictures."""

from __future__ import annotations

import itertools
import json
import re
from collections import defaultdict
from pathlib import Path

import gemm_ladder as gl
import numpy as np
import pytest
import torch
from building import disassembler_or_skip
from gemm_ladder.cli import main
from gemm_ladder.errors import InputError, LaunchError
from gemm_ladder.figures import timeline as figure
from gemm_ladder.measure.problems import make_problem
from gemm_ladder.sass import disassembly
from gemm_ladder.timeline import command as timeline
from gemm_ladder.timeline import spans, stamps, tensor_share
from gemm_ladder.timeline.chrome_trace import chrome_trace
from gemm_ladder.timeline.spans import COPY_ENGINE, TENSOR_CORE, WARP, Event, Span
from matplotlib.text import Text

DATA = Path(figure.__file__).parent / "data" / "timeline.json"
SOURCES = sorted({gl.rungs[name].path for name in timeline.CASES})
CLOCKS = re.compile(r"SR_(CLOCK|GLOBALTIMER)")


# ----------------------------------------------------------------------------------------------- the stamps


@pytest.fixture(scope="module")
def compiled():
    """compiled(path, stamped) -> gemm_ladder.build.Built, for sm_90a."""
    disassembler_or_skip()
    return lambda path, stamped: gl.build.compile(
        path, target="cuda", defines={stamps.MACRO: 1} if stamped else {}
    )


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_only_a_kernel_with_stamps_reads_clocks(compiled, path: Path) -> None:
    for stamped in (False, True):
        for kernel, code in disassembly.disassemble(compiled(path, stamped).path).items():
            clocks = [instruction for instruction in code if CLOCKS.search(instruction.operands)]
            assert (len(clocks) >= 10) == stamped and (stamped or not clocks), kernel


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_stamps_leave_the_pipeline_as_it_is(compiled, path: Path) -> None:
    """No WGMMA is serialised (warnings C7510 to C7515), and nothing is spilled."""
    log = compiled(path, True).log
    assert disassembly.resources(log)
    assert not re.findall(r"^.*(?:\bC75\d\d\b|\bwarning\b).*$", log, re.MULTILINE | re.IGNORECASE)
    for kernel, used in disassembly.resources(log).items():
        assert (used.stack_frame, used.spill_stores, used.spill_loads) == (0, 0, 0), kernel


def test_a_stamped_rung_is_the_same_file() -> None:
    for name in timeline.CASES:
        rung = gl.rungs[name]
        assert stamps.traced(rung).path == rung.path
        assert stamps.traced(rung).supports(1, 1, 1) == rung.supports(1, 1, 1)


NAMES = ("none", "placed", "mbarrier_wait", "mbarrier_test", "wgmma_fence", "wgmma_wait")
NS_A_CYCLE = 1 / 1.755
SMS = {0: 3, 1: 4, 5: 3, 6: 3, 7: 4, 8: 3, 9: 4}  # of the blocks


def stamp(
    event: str, us: float, address: int = 0, value: int = 0, block: int = 0, wait: float = 0.0
) -> tuple:
    """A stamp as an SM writes it; its clock and its global timer, with ticks of 32 ns, are about to wrap
    around. A wait of `wait` microseconds ends at `us`."""
    zero = 2**32 - 5000 + 123457 * SMS[block]
    begin, end = (round(time * 1e3 / NS_A_CYCLE + zero) % 2**32 for time in (us - wait, us))
    what = NAMES.index(event) << 28 | (value << 20 if wait else 0) | address
    timer = (2**32 - 3200 + int(us * 1e3) // 32 * 32) % 2**32
    return what, begin if wait else value, end, timer, block, 4


def placed() -> list[tuple]:
    return [stamp("placed", 0.5, value=sm, block=block) for block, sm in SMS.items()]


def noise() -> list[tuple]:
    """Stamps of blocks 8 and 9, on two SMs, over 40 us: enough to fit the time scale."""
    return [stamp("wgmma_fence", us, block=block) for us in np.linspace(1, 40, 400) for block in (8, 9)]


SLOTS = 1 << 13


def read(taken: list[tuple], blocks: tuple[int, ...]) -> stamps.Recording:
    """The recording of these stamps, with the events of these blocks only, and without those that say on
    which SM a block is."""
    shuffled = np.random.default_rng(0).permutation(np.array(placed() + taken + noise(), stamps.STAMP))
    recording = stamps.read(shuffled, NAMES, SLOTS)
    events = [event for event in recording.events if event.kind != "placed" and event.block in blocks]
    return recording._replace(events=events)


def test_stamps_are_put_on_one_time_scale() -> None:
    """Across the wrap of both counters; two SMs whose clocks differ."""
    taken = [stamp("wgmma_fence", 10 + i) for i in range(3)]
    taken += [stamp("wgmma_wait", 10.75 + i, block=5, wait=0.5) for i in range(3)]
    recording = read(taken, (0, 5))
    assert recording.sm == {block: sm for block, sm in SMS.items() if sm == 3}
    assert recording.about["sm_mhz"] == pytest.approx(1755, rel=1e-3)
    assert recording.about["globaltimer_tick_ns"] == 32 and recording.about["residual_ns"] < 32
    expected = {
        (0, "wgmma_fence"): [9.5, 10.5, 11.5],  # after the first, "placed" at 0.5
        (5, "wgmma_wait"): [9.75, 10.75, 11.75],
        (5, "wgmma_pass"): [10.25, 11.25, 12.25],
    }
    for (block, kind), times in expected.items():
        found = [event.time for event in recording.events if (event.block, event.kind) == (block, kind)]
        np.testing.assert_allclose(found, times, atol=0.02)


def test_every_block_on_the_sm_of_block_0_is_recorded() -> None:
    """Also one that begins later; and all groups are counted, on other SMs too."""
    taken = [stamp("wgmma_fence", us) for us in (10, 20)]
    taken += [stamp("wgmma_fence", us, block=5) for us in (22, 30)]
    taken += [stamp("wgmma_fence", us, block=6) for us in (15, 25)]
    taken += [stamp("wgmma_fence", us, block=7) for us in (10, 20)]
    first = [row for row in placed() if row[4] in (0, 6, 7)]
    later = [stamp("placed", 21, value=3, block=5)]
    of_sm_4 = [stamp("wgmma_fence", us, block=7) for us in np.linspace(1, 40, 300)]
    recording = stamps.read(np.array(first + later + taken + of_sm_4, stamps.STAMP), NAMES, SLOTS)
    assert set(recording.sm) == {0, 5, 6}
    assert {event.block for event in recording.events} == {0, 5, 6}
    assert recording.groups == (len(taken) + len(of_sm_4)) / 4


def test_a_clock_that_changes_later_does_not_bend_the_time_scale() -> None:
    """After 25 us the SMs run at half their clock; block 0 has ended by then."""
    late = [stamp("wgmma_fence", 25 + (us - 25) / 2, block=8) for us in np.linspace(26, 60, 400)]
    late = [(*one[:3], (2**32 - 3200 + int(us * 1e3) // 32 * 32) % 2**32, *one[4:]) for one, us in
            zip(late, np.linspace(26, 60, 400), strict=True)]  # fmt: skip
    early = [stamp("wgmma_fence", us, block=block) for us in np.linspace(1, 24, 300) for block in (0, 9)]
    recording = stamps.read(np.array(placed() + early + late, stamps.STAMP), NAMES, SLOTS)
    assert recording.about["sm_mhz"] == pytest.approx(1755, rel=1e-3)
    assert recording.about["residual_ns"] < 32


def test_blocks_in_the_picture_are_those_at_work_with_block_0() -> None:
    lives = {0: (0, 10), 1: (0, 4), 2: (1, 12), 3: (11, 20)}
    found = [Span(block, WARP, 0, "consumer 0", "wait", *life) for block, life in lives.items()]
    assert timeline.beside_block_0(found) == {0, 2}


def test_room_for_stamps() -> None:
    assert stamps.slots_for(132) == stamps.MOST_SLOTS
    for blocks in (1, 896, 3705, 100_000):
        slots = stamps.slots_for(blocks)
        assert slots & (slots - 1) == 0 and blocks * stamps.WARPS * slots * 16 <= stamps.ROOM
    case = timeline.CASES["s5_tma_multicast"]
    assert timeline.most_blocks(case, timeline.Shape(4096, 7168, 1024), 132) >= 64 * 56
    assert timeline.most_blocks(timeline.CASES["s7_persistent"], case.gpu, 132) == 132


def test_an_mbarrier_test_is_an_event_if_it_found_the_phase_complete() -> None:
    taken = [
        stamp("mbarrier_test", 1, address=64, value=0),  # in vain
        stamp("mbarrier_wait", 3, address=64, value=0, wait=1),
        stamp("mbarrier_test", 4, address=64, value=1),  # found: no wait for that phase follows
        stamp("mbarrier_test", 5, address=72, value=0),  # never looked at again: not known
        stamp("mbarrier_test", 6, address=64, value=0),
        stamp("mbarrier_wait", 8, address=64, value=0, wait=1),
    ]
    found = [(event.kind, round(event.time + 0.5), event.address) for event in read(taken, (0,)).events]
    assert found == [
        ("mbarrier_wait", 2, 64),
        ("mbarrier_pass", 3, 64),
        ("mbarrier_test", 4, 64),
        ("mbarrier_wait", 7, 64),
        ("mbarrier_pass", 8, 64),
    ]


def test_only_the_last_turn_of_a_ring_is_kept() -> None:
    turn = SLOTS * stamps.SLOT_CLOCKS * NS_A_CYCLE / 1e3
    taken = [stamp("wgmma_fence", us) for us in (1, 2, turn + 1.5, turn + 3)]
    assert len(read(taken, (0,)).events) == 2


def test_stamps_that_make_no_time_scale() -> None:
    with pytest.raises(LaunchError, match="left no stamps"):
        stamps.read(np.empty(0, stamps.STAMP), NAMES, SLOTS)
    with pytest.raises(LaunchError, match="the global timer had 1 values"):
        stamps.read(np.array(placed()[:1], stamps.STAMP), NAMES, SLOTS)
    with pytest.raises(LaunchError, match="a block runs for longer than the 131072 cycles"):
        stamps.read(np.array(placed()[1:] + noise() + [stamp("wgmma_fence", 9)], stamps.STAMP), NAMES, SLOTS)


# ------------------------------------------------------------------------------------------------ the spans


def actors(found: list[Span]) -> dict[tuple[int, str, int], list[Span]]:
    """The spans of each actor, in order."""
    of_actor = defaultdict(list)
    for span in sorted(found, key=lambda span: span.begin):
        of_actor[span.block, span.unit, span.index].append(span)
    return of_actor


def check_well_formed(found: list[Span], events: list[Event]) -> None:
    """Assert what holds for every rung on either machine; the spans are of the events."""
    at = {
        kind: {event[:3] for event in events if event.kind == kind} for kind in ("wgmma_fence", "wgmma_pass")
    }
    instants = at["wgmma_fence"] & at["wgmma_pass"]  # groups that took no step of the emulator's scheduler
    of_actor = actors(found)
    kinds = {
        COPY_ENGINE: {"load"},
        TENSOR_CORE: {"multiply"},
        WARP: {"issue", "wait", "promote", "store"},
    }
    assert {unit for _, unit, _ in of_actor} == set(kinds)
    for (block, unit, index), mine in of_actor.items():
        assert {span.what for span in mine} <= kinds[unit]
        assert all(span.begin < span.end for span in mine)
        assert all(one.end <= next_.begin for one, next_ in itertools.pairwise(mine)), (block, unit, index)
        if unit == WARP:
            products = of_actor.get((block, TENSOR_CORE, index), [])
            ends = {span.end for span in products} | {
                time for time, *who in instants if who == [block, index]
            }
            assert all(span.begin in ends for span in mine if span.what == "promote")
            assert (mine[0].role == "producer") == (not products)
            if mine[0].role == "producer":
                # On the emulator, requesting a stage may take no step of the scheduler; then there is no
                # span.
                assert "wait" in {span.what for span in mine} <= {"wait", "issue"}
        if unit == COPY_ENGINE:
            assert all(span.bytes > 0 for span in mine)
            waits = [span for span in found if span.block == block and span.on == f"full {index}"]
            # A wait for the stage ends when the stage is full, so never in the middle of a load.
            assert not [(w, s) for w in waits for s in mine if s.begin < w.end < s.end]
    for block in {span.block for span in found}:
        issuing = {span.index for span in found if span.block == block and span.what == "issue"}
        assert len(issuing) <= 1  # 0 if issuing took no step of the emulator's scheduler


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", timeline.RECORDED)
def test_timelines_of_the_emulator(name: str, seed: int) -> None:
    """Spans of one actor do not overlap, and every WGMMA group and every byte is there."""
    case = timeline.CASES[name]
    problem = make_problem(case.emulator, "cpu")
    with gl.emulator(seed=seed, record=True) as run:
        gl.rungs[name]((problem.a, problem.sfa), (problem.b, problem.sfb), problem.output())
    recorded = run.events[run.events["cluster"] == 0]
    events = spans.of_emulator(run.events)
    found = spans.spans(events)
    check_well_formed(found, events)

    for block in {span.block for span in found}:
        here = recorded[recorded["block"] == block]
        loaded = sum(span.bytes for span in found if span.block == block)
        assert loaded == here["value"][here["kind"] == "tma_load_landed"].sum() > 0
        warps = {span.index for span in found if (span.block, span.unit) == (block, TENSOR_CORE)}
        assert (
            len(warps) == len({span.role for span in found if span.index in warps and span.unit == WARP}) * 4
        )
        for warp in warps:
            lane_0 = here[here["thread"] == 32 * warp]
            begun, ended = (lane_0["step"][lane_0["kind"] == f"wgmma_{what}"] for what in ("fence", "pass"))
            assert len(begun) == len(ended) == (lane_0["kind"] == "wgmma_commit").sum() > 0
            products = [s for s in found if (s.block, s.unit, s.index) == (block, TENSOR_CORE, warp)]
            # A group may take no step of the scheduler; then there is no span.
            assert len(products) == (ended > begun).sum() > 0
    roles = {span.role for span in found if span.unit == WARP}
    one = {"consumer 0"}
    specialised = name in ("s6_warp_specialized", "s7_persistent")
    assert roles == ({*one, "consumer 1", "producer"} if specialised else one)


def test_products_in_flight_at_the_same_time() -> None:
    """A wait that leaves one group in flight ends the oldest; its promotion overlaps the next group."""
    kinds = [("wgmma_fence", 0), ("wgmma_fence", 0), ("wgmma_wait", 1), ("wgmma_pass", 1), ("wgmma_fence", 0)]
    kinds += [("wgmma_wait", 0), ("wgmma_pass", 0), ("thread_exit", 0)]
    events = [Event(float(time), 0, 4, kind, 0, value) for time, (kind, value) in enumerate(kinds)]
    found = [(span.what, span.begin, span.end) for span in spans.spans(events)]
    assert [span for span in found if span[0] == "multiply"] == [
        ("multiply", 0, 3),
        ("multiply", 1, 6),
        ("multiply", 4, 6),
    ]
    assert ("promote", 3, 4) in found and ("store", 6, 7) in found


@pytest.mark.gpu
@pytest.mark.parametrize("name", timeline.CASES)
def test_timelines_of_a_gpu(name: str) -> None:
    """The kernel with stamps gives the same bits; its spans are well formed and have every WGMMA group."""
    case, rung = timeline.CASES[name], gl.rungs[name]
    problem = make_problem(case.gpu, "cuda")
    operands, out, stamped = (
        ((problem.a, problem.sfa), (problem.b, problem.sfb)),
        problem.output(),
        problem.output(),
    )
    rung(*operands, out)
    sms = torch.cuda.get_device_properties("cuda").multi_processor_count
    recording = stamps.record(rung, *operands, stamped, timeline.most_blocks(case, case.gpu, sms))
    assert torch.equal(out.view(torch.int16), stamped.view(torch.int16))
    # SMs change their clocks during a run, so they agree less well than the timer's tick. The residual is
    # still a fraction of a K block, which takes half a microsecond or more.
    assert recording.about["residual_ns"] < 250
    found = spans.spans(recording.events)
    check_well_formed(found, recording.events)
    for block in recording.sm:
        first = [span for span in found if (span.block, span.unit) == (block, TENSOR_CORE)]
        products = sum(span.index == first[0].index for span in first)
        assert products % (case.gpu.k // 128) == 0 < products
        loads = [span for span in found if (span.block, span.unit) == (block, COPY_ENGINE)]
        assert len(loads) % (case.gpu.k // 128) == 0 < len(loads)
    # What one SM's tensor cores did, by the stamps, is what the kernel's time says of all SMs. They differ by
    # the last thread block's epilogue, which leaves no stamp, and because some SMs have less to do.
    mhz = recording.about["sm_mhz"]
    share = tensor_share.of_spans(found, case.gpu.flops / recording.groups, mhz).share
    tflops = case.gpu.flops / recording.about["stamped_us"] / 1e6
    assert share == pytest.approx(tensor_share.of_time(tflops, sms, mhz), rel=0.15)


# ------------------------------------------------------------------------------- the trace file, the command


def check_trace(trace: dict) -> None:
    """Assert the rules of the Trace Event Format for the two kinds of event that are used."""
    named = set()
    for event in trace["traceEvents"]:
        assert isinstance(event["name"], str) and event["name"]
        assert isinstance(event["pid"], int) and isinstance(event["tid"], int)
        if event["ph"] == "M":
            key = {"process_name": "name", "thread_name": "name", "thread_sort_index": "sort_index"}[
                event["name"]
            ]
            assert set(event["args"]) == {key}
            named.add((event["name"], event["pid"], event["tid"]))
        else:
            assert event["ph"] == "X" and event["cat"] in figure.COLOURS
            assert event["ts"] >= 0 and event["dur"] >= 0
            assert ("process_name", event["pid"], 0) in named
            assert ("thread_name", event["pid"], event["tid"]) in named
    assert trace["displayTimeUnit"] in ("ms", "ns")


def test_command_writes_trace_data_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {option: tmp_path / f"{option}.out" for option in ("trace", "json", "picture")}
    files["picture"] = tmp_path / "picture.png"
    options = [word for option, path in files.items() for word in (f"--{option}", str(path))]
    assert main(["timeline", "s4_tma", "--machine", "emulator", "--shape", "64x128x384", *options]) == 0
    printed = capsys.readouterr().out
    assert "s4_tma at 64 x 128 x 384 on the emulator" in printed and "copy engine, stage 2" in printed
    trace = json.loads(files["trace"].read_text())
    check_trace(trace)
    assert sum(event["name"] == "multiply" for event in trace["traceEvents"]) == 4 * 3
    assert trace["otherData"]["seed"] == timeline.CASES["s4_tma"].seed
    data = figure.load(files["json"])
    assert {row["unit"] for row in data["rows"]} == {WARP, TENSOR_CORE, COPY_ENGINE}
    assert sum(len(row["spans"]) for row in data["rows"] if row["unit"] == TENSOR_CORE) == 3
    assert files["picture"].read_bytes().startswith(b"\x89PNG")


def test_trace_names_blocks_and_times_in_microseconds() -> None:
    found = [
        Span(0, WARP, 4, "consumer 0", "wait", 0.5, 2.0, on="full 1"),
        Span(0, COPY_ENGINE, 1, "copy engine", "load", 0.25, 2.0, bytes=4096),
    ]
    trace = chrome_trace(found, {0: 17}, {"rung": "s7"})
    check_trace(trace)
    words = [event["args"].get("name") for event in trace["traceEvents"] if event["ph"] == "M"]
    assert words == ["block 0, SM 17", "copy engine, stage 1", None, "consumer 0, warp 4", None]
    load, wait = (event for event in trace["traceEvents"] if event["ph"] == "X")
    assert (load["ts"], load["dur"], load["args"]["bytes"]) == (0.25, 1.75, 4096)
    assert (wait["name"], wait["cat"], wait["dur"]) == ("wait: full 1", "wait", 1.5)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["s3_wgmma"], "s3_wgmma has no timeline; one of s4_tma,"),
        (["s9"], "'s9' is not a rung's name; one of s0_numpy, s1_naive,"),
        (["s4_tma", "--machine", "gpu"], "found no CUDA GPU that torch can use; a Hopper GPU is needed for"),
        (["s4_tma", "--shape", "64x128"], "'64x128' is not a shape; MxNxK is needed"),
        (["s4_tma", "--shape", "8x8x128,8x8x256"], "one shape is needed"),
        (["s4_tma", "--shape", "64x128x100"], "k = 100; a multiple of 128 is needed"),
        (["s4_tma", "--shape", "4096x7168x16384"], "the emulator takes at most"),
        (["s4_tma", "--seed", "-1"], "seed is -1; an integer from 0 to 2^64 - 1 is needed"),
        (
            ["s4_tma", "--trace", "none/x.json"],
            "--trace none/x.json is in no folder; one that exists is needed",
        ),
        (["all"], "timeline all is for --json alone; a rung's name is needed for the other options"),
        (["all", "--json", "x.json", "--picture", "x.png"], "timeline all is for --json alone"),
    ],
)
def test_refusals(
    argv: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    assert main(["timeline", *argv]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert said in printed.err


def test_a_zero_shape_is_refused() -> None:
    with pytest.raises(InputError, match="m >= 0"):
        timeline.take("s4_tma", "emulator", None, timeline.Shape(-1, 8, 128))


# ------------------------------------------------------------------------------------- the data, the pictures


def row(unit: str, index: int, role: str, found: list[list], block: int = 0, sm: int | None = 3) -> dict:
    """A made-up row of figures/data/timeline.json."""
    head = {"rung": "s7", "machine": "emulator" if sm is None else "gpu", "m": 4096, "n": 7168, "k": 16384}
    actor = {"block": block, "sm": sm, "unit": unit, "index": index, "role": role}
    share = {} if sm is None else {"tensor_share": 0.4321, "in_flight": 0.5}
    return {**head, "until": 9.0, "us": 99.5, "stamped_us": 101.0, **share, **actor, "spans": found}


def invented(blocks: tuple[int, ...] = (0, 132)) -> dict:
    """A made-up data file with two consumers that take turns, on both machines."""
    rows = []
    for sm, block in itertools.product((3, None), blocks):
        rows.append(row(COPY_ENGINE, 0, "copy engine", [["load", 0, 2], ["load", 3, 4]], block, sm))
        rows.append(row(COPY_ENGINE, 1, "copy engine", [["load", 1, 3]], block, sm))
        rows.append(row(WARP, 0, "producer", [["issue", 0, 1], ["wait", 1, 3]], block, sm))
        for consumer in (0, 1):
            warp, role = 4 + 4 * consumer, f"consumer {consumer}"
            product = [["multiply", 2 + consumer, 3 + consumer], ["multiply", 4 + consumer, 5 + consumer]]
            rows.append(row(TENSOR_CORE, warp, role, product, block, sm))
            rows.append(
                row(WARP, warp, role, [["promote", 3 + consumer, 4 + consumer], ["store", 7, 8]], block, sm)
            )
    meta = {"gpu": "NVIDIA H100 80GB HBM3", "driver": "580.0", "nvcc": "13.0", "date": "2026-01-01"}
    return {"schema": 1, "meta": {**meta, "sources": "ab" * 32, "protocol": "-"}, "rows": rows}


def test_beside() -> None:
    """Consumer 0 promotes from 3 to 4, while consumer 1 multiplies; consumer 1 from 4 to 5, while 0 does."""
    rows = [one for one in invented((0,))["rows"] if one["machine"] == "gpu"]
    assert figure.beside(rows) == 1.0
    alone = [one for one in rows if one["role"] != "consumer 1"]
    assert figure.beside(alone) == 0.0
    elsewhere = [one | {"sm": 5} if one["role"] == "consumer 1" else one for one in rows]
    assert figure.beside(elsewhere) == 0.0


def test_tensor_share() -> None:
    """Two thread blocks, a group of 4 x 8192 operations in each 10 cycles of flight: a cycle of each warp's
    share is what counts, however long a group is in flight and however many are at the same time."""
    mhz = 1000.0  # a cycle is a nanosecond
    warps = [
        Span(block, TENSOR_CORE, warp, "consumer 0", "multiply", begin, begin + 0.010)
        for block, begin in ((0, 0.010), (1, 0.015), (0, 0.030))
        for warp in range(4)
    ]
    waits = [Span(0, WARP, 0, "consumer 0", "wait", 0.0, 0.010), Span(1, WARP, 0, "x", "store", 0.05, 0.1)]
    found = tensor_share.of_spans(warps + waits, 4 * 8192, mhz)
    assert found.window == pytest.approx(0.1)
    assert found.share == pytest.approx(3 * 4 / 100)
    assert found.in_flight == pytest.approx((15 + 10) / 100)
    tflops = 132 * 3 * 4 * 8192 / 0.1 / 1e6  # of 132 such SMs
    assert tensor_share.of_time(tflops, 132, mhz) == pytest.approx(found.share)


@pytest.mark.parametrize("blocks", [(0,), (0, 132)])
def test_picture_names_everything_and_nothing_overlaps(blocks: tuple[int, ...]) -> None:
    (drawn,) = figure.pictures(invented(blocks)).values()
    drawn.canvas.draw()
    renderer = drawn.canvas.get_renderer()
    width, height = drawn.canvas.get_width_height()
    texts = [*drawn.texts, *drawn.legends[0].get_texts()]
    for axes in drawn.axes:
        texts += [*axes.texts, axes._left_title, axes._right_title, axes.xaxis.label, *axes.get_xticklabels()]
    boxes = [(text.get_text(), Text.get_window_extent(text, renderer)) for text in texts if text.get_text()]
    for words, box in boxes:
        assert min(box.x0, box.y0) >= 0 and box.x1 <= width and box.y1 <= height, words
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        depth = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert min(depth) <= 1, f"{one!r} overlaps {other!r}"
    words = " ".join(text for text, _ in boxes)
    for expected in (
        "copy engine",
        "producer",
        "consumer 1",
        "tensor core",
        "The emulator",
        "H100",
        "101.0 us",
        "Tensor-core share 43%: a WGMMA in flight 50% of the time, at 86% of the full rate",
    ):
        assert expected in words
    assert len(drawn.axes) == 2


@pytest.mark.skipif(not DATA.exists(), reason="no timeline is recorded")
def test_recorded_timelines() -> None:
    data = figure.load(DATA)
    assert DATA.stat().st_size < 150_000
    found = {one["rung"] for one in data["rows"]}
    assert found <= set(timeline.RECORDED)
    if missing := set(timeline.RECORDED) - found:
        pytest.skip(f"not recorded yet: {', '.join(missing)}")
    for one in data["rows"]:
        assert one["machine"] in ("gpu", "emulator") and one["spans"]
        ends = [0.0, *itertools.chain.from_iterable((begin, end) for _, begin, end in one["spans"])]
        assert ends == sorted(ends) and ends[-1] <= one["until"]
        assert {what for what, _, _ in one["spans"]} <= set(figure.COLOURS)
    for name, figure_ in figure.pictures(data).items():
        assert (DATA.parent.parent / f"timeline_{name}.png").exists()
        assert figure_.axes
