"""The emulator's events in English. The page fills in the same sentences."""

from __future__ import annotations

# By kind, what the thread or the asynchronous unit does. {at} is the name of the event's address, {value} its
# value: ref/emulator/core/record.hpp says what the two are in each kind.
SENTENCES = {
    "thread_start": "starts",
    "thread_exit": "ends",
    "mbarrier_init": "initialises {at}, count {value}",
    "mbarrier_arrive": "arrives on {at}: {value} pending",
    "mbarrier_expect_tx": "expects {value} bytes on {at}",
    "mbarrier_complete_tx": "bytes arrive on {at}: {value} still to come",
    "mbarrier_phase": "{at} completes phase {value}",
    "mbarrier_wait": "waits for {at}, parity {value}",
    "mbarrier_pass": "passes {at}, parity {value}",
    "tma_load": "issues a TMA load of {value} bytes to {at}",
    "tma_load_landed": "a TMA load of {value} bytes has landed in {at}",
    "tma_store": "issues a TMA store of {value} bytes from {at}",
    "tma_store_read": "a TMA store has read its {value} bytes in {at}",
    "tma_store_written": "a TMA store of {value} bytes from {at} has reached global memory",
    "wgmma_fence": "wgmma.fence",
    "wgmma": "issues a WGMMA, n = {value}, A in {at}",
    "wgmma_executed": "a WGMMA has been executed, n = {value}, A in {at}",
    "wgmma_commit": "commits WGMMA group {value}",
    "wgmma_wait": "waits until at most {value} WGMMA groups are in flight",
    "wgmma_pass": "goes on: at most {value} WGMMA groups are in flight",
    "fence_proxy_async": "fence.proxy.async",
    "bar_sync": "waits at named barrier {value}",
    "bar_arrive": "arrives at named barrier {value}, without waiting",
    "bar_pass": "passes named barrier {value}",
    "cluster_arrive": "arrives at the cluster barrier",
    "cluster_pass": "passes the cluster barrier",
    "setmaxnreg": "setmaxnreg: {value} registers a thread",
    "stmatrix": "stmatrix to {at}",
    "global_store": "stores to global memory, {value} bytes at first",
}
OTHER = "{kind}: {at}, value {value}"  # a kind that is not in the table

# Events after which the thread stands still until the event that the second name is.
WAITS = {"mbarrier_wait": "mbarrier_pass", "wgmma_wait": "wgmma_pass", "bar_sync": "bar_pass"}
# After it a thread may still work, until it waits for the barrier, which is not recorded.
ARRIVES = {"cluster_arrive": "cluster_pass"}


def sentence(kind: str, at: str, value: int) -> str:
    return SENTENCES.get(kind, OTHER).format(kind=kind, at=at, value=value)
