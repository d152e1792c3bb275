"""The form of the files in figures/data: which fields a file's meta and its rows have.

Every file is {"schema": 1, "meta": {...}, "rows": [...]}. What writes a file (gemm_ladder.measure,
gemm_ladder.timeline) and what reads it (figures/) take the names of the fields from here. Nothing of
gemm_ladder is imported, because the figures are drawn without it.

Units: us is microseconds, tflops 10^12 floating-point operations a second, gb_s 10^9 bytes a second, shared
memory is bytes.
"""

from __future__ import annotations

from typing import Any, TypedDict

# ----------------------------------------------------------------------------------------- where and when


class MachineMeta(TypedDict):
    """What a measurement on a GPU ran on, when, with which kernel sources, and how it was taken."""

    gpu: str
    num_sms: int
    power_limit_w: float | None
    driver: str | None
    cuda: str | None
    nvcc: str | None
    torch: str
    date: str  # ISO 8601
    sources: str  # gemm_ladder.build.sources_digest()
    protocol: str


class TimesMeta(MachineMeta, total=False):
    """Also: the implementations that could not be measured, and the production kernels that ran."""

    not_measured: list[dict[str, str]]  # impl, shape, reason
    configurations: dict[str, str]  # kernel by product


class WeightMeta(TypedDict):
    """A linear of a public model: its n and k whole and cut for 2, 4 and 8 GPUs."""

    model: str
    source: str
    linear: str
    experts: int
    sizes: list[list[int]]


class EverywhereMeta(TimesMeta, total=False):
    """Also: the weights of the grid, those that cannot be multiplied (model, linear, gpus, n, k, reason), how
    many products the grid and its subset have, and DeepGEMM's version; what a run that goes on needs to know:
    the faults (impl, shape, reason) and what was wrong."""

    weights: list[WeightMeta]
    not_measurable: list[dict[str, Any]]
    products: dict[str, int]
    deep_gemm: str | None
    faults: list[dict[str, str]]
    wrong: list[str]


class ModelMeta(TimesMeta, total=False):
    """Also: DeepGEMM's version; whether MiniLM's weights were "trained" or "random"; of those that were
    trained, the least cosine of a sentence's vector in FP8 and in FP32, of sentences and of a word or two."""

    deep_gemm: str | None
    weights: str
    cosine: float
    cosine_short: float


class HostMeta(TimesMeta):
    cpu: str | None
    python: str


class ParallelMeta(TimesMeta):
    """Also: NCCL's version, and the sizes of what was measured (gemm_ladder.measure.parallel_ranks.Plan)."""

    nccl: str
    plan: dict[str, Any]


class CorpusMeta(TypedDict):
    """A text: what it is, how many files and bytes it has, and the hash of what is trained on and, after it,
    of what is held out."""

    name: str
    files: int
    train_bytes: int
    held_out_bytes: int
    sha256: str


class StepTime(TypedDict):
    """How long a step of training took: the median of `steps` of them. mode is "eager", "compiled",
    "graph" or "compiled_graph"."""

    linears: str
    seed: int
    mode: str
    steps: int
    ms: float
    ms_p10: float
    ms_p90: float


class LossesMeta(TimesMeta):
    """Also: the text; the model's sizes, how many parameters it has and how many of them are multiplied in
    FP8; the tokens of a step; how many steps were done and how many were wanted; and how long they took."""

    corpus: CorpusMeta
    model: dict[str, int]
    tokens: int
    steps: int
    steps_wanted: int
    times: list[StepTime]


class CardsMeta(TypedDict):
    nvcc: str
    date: str
    sources: str
    protocol: str
    ncu: dict[str, str] | None  # gpu, driver, ncu, date, shape, protocol


class _TimelineMeta(TypedDict):
    gpu: str | None
    date: str
    sources: str
    protocol: str


class TimelineMeta(_TimelineMeta, total=False):
    """gpu is None where only the emulator was recorded. Where a GPU was, all of MachineMeta is there."""

    driver: str | None
    nvcc: str | None


# -------------------------------------------------------------------------------------------------- times


class TimedRow(TypedDict):
    """A kernel's time at one product: ladder.json, production.json, interleave.json, fences.json.

    kind is "dense", "contiguous" or "masked"; a grouped product has `groups` groups of about m valid rows.
    impl is a rung or a library's call. l2 is "dirty" or "clean". us is the median; tflops and gb_s count
    valid rows only; rel_err is ||out - reference|| / ||reference||.
    """

    kind: str
    groups: int
    m: int
    n: int
    k: int
    impl: str
    l2: str
    us: float
    us_p10: float
    us_p90: float
    tflops: float
    gb_s: float
    rel_err: float


class EverywhereRow(TimedRow):
    """A product of the grid: everywhere.json, whose file has the names of the fields once ("columns") and a
    list of values for each row.

    l2 may also be "graph". The groups are of very uneven size: m is the mean number of valid rows of a group
    before those of a masked product are limited to max_m, rows is the number of all valid rows, and
    expected_m is what a masked call is told about a group's. max_m and expected_m are 0 if it is not masked.
    """

    rows: int
    max_m: int
    expected_m: int


class HostRow(TypedDict):
    """What a call costs the host: host.json.

    quantity is "call", or one of those that gemm_ladder.measure.starting describes; us is the median. The m
    of a warm-up is its largest.
    """

    quantity: str
    impl: str
    kind: str
    groups: int
    m: int
    n: int
    k: int
    us: float
    us_p10: float
    us_p90: float


class CastRow(TypedDict):
    """A cast to FP8 of [m, k] in BF16: casts.json.

    cast is a gemm_ladder.measure.casts.Cast by its name; m counts the rows of all groups, where there are
    groups, also those that are not cast. impl is "casts", "copy" (of as many bytes), "empty" (a kernel that
    does nothing) or a library. l2 is "dirty", "clean" or, in a CUDA graph of calls on the same tensors,
    "graph". us is the median; gb_s is 0 for the empty kernel.
    """

    cast: str
    m: int
    k: int
    impl: str
    l2: str
    us: float
    us_p10: float
    us_p90: float
    gb_s: float


class ParallelRow(TypedDict):
    """A layer on one GPU, or shared by several: parallel.json.

    what is "experts", "mlp", "training" (forward and backward passes of experts), or a transfer alone:
    "all_to_all", "all_reduce". impl is "one" (the whole layer, on one GPU), "sums", "rows" or
    "everywhere" (how ParallelFp8Experts lets tokens travel), or "nccl", with "_graph" behind it in a CUDA
    graph. tokens are those of all ranks together. us is the median of the slowest rank's time, of which
    dispatch_us, products_us and combine_us, or in training forward_us and backward_us, are parts; 0 where
    there is no such part. bytes is what a rank sends to others; rel_err is ||out - one|| / ||one||, in
    training the largest of the result and the gradients.
    """

    what: str
    impl: str
    ranks: int
    tokens: int
    us: float
    us_p10: float
    us_p90: float
    dispatch_us: float
    products_us: float
    combine_us: float
    forward_us: float
    backward_us: float
    bytes: int
    rel_err: float


class LossRow(TypedDict):
    """The losses of a model in training: fp8_training.json.

    linears is "bf16" or "fp8"; seed is that of the first weights and of the batches. Losses are nats a byte:
    train is the mean of the steps since the row before, held_out that of the model after so many steps, on
    text that it is not trained on; None where it was not looked at.
    """

    linears: str
    seed: int
    step: int
    train: float | None
    held_out: float | None


class ModelRow(TypedDict):
    """A decoder layer, or the whole of a small model: model.json.

    phase is "prefill" (a sequence of `tokens`), "decode" (a batch of `tokens` sequences, each of `context`
    tokens) or "encode" (sentences of `tokens` together). impl is "bf16", "fp8" (converted by
    gemm_ladder.layers), both also "..._compiled" (by torch.compile), "fp8_fused" (norms and activations are
    part of the casts) or "deep_gemm" (the same with its products). how is "calls" (from Python, by the clock
    on the wall) or "graph" (a CUDA graph). us is the median of some measurements; rel_err is against BF16;
    parts are microseconds of kernels by the names in gemm_ladder.measure.model_times.PARTS, empty where they
    were not told apart.
    """

    model: str
    phase: str
    tokens: int
    context: int
    impl: str
    how: str
    us: float
    us_least: float
    us_most: float
    tokens_s: int
    rel_err: float
    parts: dict[str, float]


class _EmulatedRun(TypedDict):
    impl: str
    m: int
    n: int
    k: int
    outcome: str
    reason: str | None
    verdict: str


class EmulatedRow(_EmulatedRun, total=False):
    """One run of a rung on the emulator: what `compare --json` writes where there is no Hopper GPU.

    outcome is "right", "wrong" or "not run"; reason says why it is one of the last two; verdict is what
    `compare` prints for both. A rung that ran to its end also has its errors and the seconds it took.
    """

    relative_error: float
    element_error: float
    seconds: float


# ----------------------------------------------------------------------------------- what a kernel is made of


class CardRow(TypedDict):
    """One rung: cards.json. A field that a rung has no use for is None; gemm_ladder.measure.cards and
    gemm_ladder.measure.ncu say how each is found."""

    rung: str
    idea: str
    file: str  # relative to the repository
    below: str | None  # the rung that `added` and `removed` are counted against
    lines: int  # of code: without blank lines, comments and docstrings
    added: int | None
    removed: int | None
    registers: int | None  # a thread, at launch
    setmaxnreg: list[int] | None  # registers a thread after setmaxnreg, one number for each role
    spill_stores: int | None  # bytes
    spill_loads: int | None
    shared_static: int | None
    shared_dynamic: int | None
    stages: str | None
    threads: int | None  # of a block
    cluster: int | None  # blocks
    sass: dict[str, dict[str, int]] | None  # count of some instructions, by instance of the kernel
    ncu: dict[str, Any] | None  # percentages by the names in rung_cards.UNITS, `occupancy`, and `stalls`


# ----------------------------------------------------------------------------------- what happens in a kernel


class _TimelineRow(TypedDict):
    rung: str
    machine: str
    m: int
    n: int
    k: int
    until: float
    block: int
    sm: int | None
    unit: str
    index: int
    role: str
    spans: list[tuple[str, float, float]]


class TimelineRow(_TimelineRow, total=False):
    """What one actor of a thread block did: timeline.json.

    The actor is a warp, the tensor core working for a warp, or a stage of the copy engine: (unit, index,
    role). spans are [what, begin, end] and end by `until`; gemm_ladder.timeline.spans says what each `what`
    is. Times are microseconds where machine is "gpu", steps of the scheduler where it is "emulator".

    A GPU's rows also have the clocks as they were found, the kernel's time without and with stamps, and
    what gemm_ladder.timeline.tensor_share says of block 0's SM; the emulator's the seed of its schedule.
    """

    sm_mhz: float
    globaltimer_tick_ns: int
    residual_ns: float
    us: float
    stamped_us: float
    tensor_share: float
    in_flight: float
    seed: int


# ------------------------------------------------------------------------------------------------ arithmetic


class PrecisionError(TypedDict):
    """precision.json, kind "error": how far a product is from float64, and from the tensor core's model.

    The product has m rows and n columns, the corner of one with `of` of each. promotion is every how many of
    k a partial sum is promoted: 0 for never, None where a library decides. `equal` of the `compared` results
    have the bits of the model that promotes every `model` of k.
    """

    kind: str
    data: str
    m: int
    n: int
    k: int
    impl: str
    of: int
    promotion: int | None
    out: str
    rel_err: float
    bias: float
    model: int
    equal: int
    compared: int


class PrecisionTime(TypedDict):
    """precision.json, kind "time": what promoting every `promotion` of k costs."""

    kind: str
    m: int
    n: int
    k: int
    impl: str
    promotion: int
    l2: str
    us: float
    us_p10: float
    us_p90: float
    tflops: float


class ProbeRow(TypedDict):
    """tensor_core_probe.json: for one kind of operands, how many results were compared with the model's and
    how many have the same bits. A result is that of a chain of `instructions` WGMMAs."""

    kind: str
    instructions: int
    compared: int
    equal: int


class MmaProbeRow(TypedDict):
    """mma_probe.json: for one matrix instruction, how many results, of how many kinds of operands, were
    compared with the model's, and how many have the same bits."""

    instruction: str
    kinds: int
    compared: int
    equal: int


# -------------------------------------------------------------------------------------------------- the files


class TimesFile(TypedDict):
    schema: int
    meta: TimesMeta
    rows: list[TimedRow]


class HostFile(TypedDict):
    schema: int
    meta: HostMeta
    rows: list[HostRow]


class CastsFile(TypedDict):
    schema: int
    meta: TimesMeta
    rows: list[CastRow]


class ParallelFile(TypedDict):
    schema: int
    meta: ParallelMeta
    rows: list[ParallelRow]


class LossesFile(TypedDict):
    schema: int
    meta: LossesMeta
    rows: list[LossRow]


class ModelFile(TypedDict):
    schema: int
    meta: ModelMeta
    rows: list[ModelRow]


class CardsFile(TypedDict):
    schema: int
    meta: CardsMeta
    rows: list[CardRow]


class TimelineFile(TypedDict):
    schema: int
    meta: TimelineMeta
    rows: list[TimelineRow]


def fields(form: Any) -> tuple[str, ...]:
    """The names that every meta or row of this form (a TypedDict above) has, in order."""
    return tuple(name for name in form.__annotations__ if name in form.__required_keys__)
