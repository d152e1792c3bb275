"""python -m gemm_ladder production: the production kernels at every row of their table.

Needs a Hopper GPU. Every row of `shapes.PRODUCTS` is computed through the public interface, checked group by
group, and timed beside the peers in the same run. If all rows and states of L2 were measured in a checkout,
figures/data/production.json and its figures and table are renewed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import gemm_ladder
import torch
from gemm_ladder import launch
from gemm_ladder.figures import production as comparison
from gemm_ladder.figures import tables
from gemm_ladder.figures.rows import TimedRow
from gemm_ladder.measure import peers, problems, session, shapes, timing, warming
from gemm_ladder.measure.operands import Operands, held_rows, interface_call, make_operands
from gemm_ladder.measure.product import How, Maker, measure_each, measure_product
from gemm_ladder.measure.shapes import MASKED_MAX_M, PRODUCTS, Cell, Product
from gemm_ladder.production import launching
from gemm_ladder.production.config import Config
from gemm_ladder.settings import num_sms_limit

RUNG = "s9_production"
PROTOCOL = (
    "s9_production is called through gemm_ladder's public functions; in a grouped row a group has about m "
    "valid rows: their number is drawn uniformly from 0.7 m to 1.3 m with seed 0 (masked: there is room for "
    f"{MASKED_MAX_M}), and TFLOPS and GB/s count valid rows only; cuBLASLt and cuBLAS compute a grouped row "
    "as one dense product for each group, with its rows padded to a multiple of 128; rel_err of a grouped "
    "row is that of its worst group"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `production`. Returns 0, or 1 where a result is wrong.

    Raises:
        GemmLadderError: there is no Hopper GPU, or an argument is not usable.
        gemm_ladder.build.ToolchainError, BuildError: a kernel cannot be built.
    """
    parser = argparse.ArgumentParser(
        prog="python -m gemm_ladder production",
        description="Check and time the production kernels at every row of the table, beside their peers, on "
        "a Hopper GPU.",
    )
    parser.add_argument(
        "--rows",
        default="all",
        metavar="ROW,...",
        help="which rows: a kind (dense, contiguous, masked) or a row such as 64x2112x7168 or "
        "masked:4x256x7168x2048 (default: all)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the measurements to FILE")
    parser.add_argument(
        "--l2",
        choices=[*timing.L2_STATES, "both"],
        default="both",
        help="the state of L2 before a measured call: cold and full of dirty or of clean lines (default: "
        "both)",
    )
    arguments = parser.parse_args(argv)
    chosen = shapes.products(arguments.rows)
    device, found = session.need_gpu("what is measured is time", arguments.json)

    print(f"Found {found}: every row is checked, then timed beside its peers.\n")
    states = timing.L2_STATES if arguments.l2 == "both" else (arguments.l2,)
    result = on_gpu(chosen, states, device)
    show(result, states)
    whole = (set(chosen), states) == (set(PRODUCTS), timing.L2_STATES)
    session.keep(result, arguments.json, whole, record="production.json")
    return 1 if result.wrong else 0


def on_gpu(
    chosen: Sequence[Product], states: Sequence[timing.L2], device: torch.device
) -> session.Measured[TimedRow]:
    """Build all kernels, then check and time every row beside its peers."""
    result: session.Measured[TimedRow] = session.Measured()
    with torch.cuda.device(device):
        found = configurations(chosen, device)
        warming.compile_all(found.values(), [as_cell(product) for product in chosen])
        measure_each(chosen, "rows", lambda row, how: measure_row(row, how, result), states, device, result)
    result.meta["protocol"] = f"{result.meta['protocol']}; {PROTOCOL}"
    result.meta["configurations"] = {str(product): config.name for product, config in found.items()}
    return result


def configurations(chosen: Sequence[Product], device: torch.device) -> dict[Product, Config]:
    """The kernel configuration that a call of each row runs."""
    num_sms = launch.usable_sms(device, num_sms_limit())
    gpu = torch.cuda.get_device_name(device)
    found = {}
    for product in chosen:
        kind, groups, (m, n, k) = product
        rows = MASKED_MAX_M if kind == "masked" else sum(held_rows(product))
        found[product] = launching.configuration(kind, rows, n, k, groups, m, num_sms, gpu)
    return found


def as_cell(product: Product) -> Cell:
    """A product for which DeepGEMM needs about the same kernel: its groups' rows are drawn otherwise."""
    kind, groups, shape = product
    return Cell(kind, groups, shape, *((MASKED_MAX_M, shape.m) if kind == "masked" else ()))


def measure_row(product: Product, how: How, result: session.Measured[TimedRow]) -> bool:
    """Check and time everything at one row. Returns what measure_product() does."""
    operands = make_operands(product, how.device)
    ours = {RUNG: partial(interface_call, gemm_ladder, operands)}

    def errors(name: str, out: torch.Tensor | Sequence[torch.Tensor]) -> problems.Errors:
        return operands.errors(out, operands.references(scaled=name not in peers.UNSCALED))

    return measure_product(product, ours, peers_of(operands), errors, how, result)


def peers_of(operands: Operands) -> dict[str, Maker]:
    """For each peer of a row, what prepares its call."""
    if operands.product.kind == "dense":
        (problem,) = operands.parts
        return {name: partial(peer, problem) for name, peer in peers.PEERS.items()}
    found = {
        name: partial(group_by_group, peer, operands)
        for name, peer in peers.PEERS.items()
        if name != "deep_gemm"  # it has grouped products of its own
    }
    if operands.product.kind == "contiguous":
        found["torch_grouped"] = partial(torch_grouped, operands)
    return found | {"deep_gemm": lambda: interface_call(peers.deep_gemm_library(), operands)}


def group_by_group(peer: peers.Peer, operands: Operands) -> peers.Call:
    """A call of one dense product for each group that has rows, one after another; it returns the outputs of
    all."""
    calls = [peer(block) if block.shape.m else block.output for block in operands.blocks]
    return lambda: [call() for call in calls]


def torch_grouped(operands: Operands) -> peers.Call:
    """torch's grouped FP8 product in the contiguous layout. It has one scale for every row of A and of B,
    here all 1, and no promotion: like cublaslt_tensorwise it is a ceiling, not the same product."""
    (a, _), (b, _) = operands.lhs, operands.rhs
    ends = torch.tensor(operands.held).cumsum(0).to(a.device, torch.int32)
    ones = [torch.ones(shape, device=a.device) for shape in (a.shape[:1], b.shape[:2])]
    b = b.transpose(1, 2)
    return lambda: torch._scaled_grouped_mm(
        a, b, *ones, offs=ends, out_dtype=torch.bfloat16, use_fast_accum=True
    )


def show(result: session.Measured[TimedRow], states: Sequence[timing.L2]) -> None:
    """Print a table for each state of L2, the errors, what is missing and what is wrong."""
    for l2 in states:
        compared = comparison.compared(result.data, l2)
        if compared:
            print(f"\nL2 cold and {l2}:\n{tables.plain(comparison.table(compared))}")
            print("\n".join(comparison.summary(compared)))
    session.show_measured(result, ())
