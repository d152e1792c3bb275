"""Launching a built kernel, any rung's or the production set's, on a checked call's tensors."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import warnings
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from gemm_ladder.arguments import EMULATED_SMS, HOPPER, GroupedArgs
from gemm_ladder.checks import CheckedCall, grouped
from gemm_ladder.errors import BuildError, LaunchError, ToolchainError, one_line
from gemm_ladder.ref import emulator

K = TypeVar("K", bound=Hashable)

# Takes the address of a GemmArgs or GroupedArgs, returns None or an error.
Launcher = Callable[[Any], "bytes | None"]

_UNCHANGED = contextlib.nullcontext()


def on_gpu(name: str, library: ctypes.CDLL, call: CheckedCall, num_sms: int = 0) -> None:
    """Queue a kernel on the current stream of the call's device, whichever device is current.

    Args:
        name: whose kernel it is, for the error.
        library: built for "cuda".
        num_sms: how many SMs to use; 0, or more than there are: all of them.

    Raises:
        LaunchError: CUDA or the kernel's own launcher refuses.
    """
    device = call.a.device
    start(name, launcher(library), GroupedArgs.of(call, usable_sms(device, num_sms)), device)


def start(name: str, entry: Launcher, arguments: Any, device: torch.device) -> None:
    """Queue a kernel on the current stream of a GPU, whichever device is current.

    Args:
        name: whose kernel it is, for the error.
        entry: of its library, as `launcher` gives it.
        arguments: a ctypes structure with a field `stream`, which is written.
        device: a CUDA device, with its index.

    Raises:
        LaunchError: CUDA or the kernel's own launcher refuses.
    """
    with current(device):
        # torch.cuda.current_stream makes an object, which takes longer than the launch.
        arguments.stream = torch._C._cuda_getCurrentRawStream(device.index)
        error = entry(ctypes.addressof(arguments))
    if error is not None:
        raise LaunchError(f"{name}: {error.decode()}")


def current(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """A context in which a GPU is the current one. If it is already, which is usual, torch is not told so."""
    return _UNCHANGED if torch.cuda.current_device() == device.index else torch.cuda.device(device)


def on_emulator(name: str, library: ctypes.CDLL, call: CheckedCall, num_sms: int = 0) -> None:
    """Run a kernel on the emulator.

    Args:
        name, library: as for `on_gpu`; the library is built for "emulator".
        num_sms: how many SMs to emulate; 0: EMULATED_SMS.

    Raises:
        LaunchError: the kernel's own launcher refuses.
        EmulatorError: the emulator found the kernel at fault.
    """
    tensors = {"A": call.a, "A's scales": call.sfa, "B": call.b, "B's scales": call.sfb, "D": call.out}
    if call.rows is not None:
        tensors["the layout"] = call.rows
    error = emulator.launch(library, GroupedArgs.of(call, num_sms or EMULATED_SMS), tensors, once={"D"})
    if error is not None:
        raise LaunchError(f"{name}: {error}")


def launcher(library: ctypes.CDLL, name: str = "gemm_ladder_launch") -> Launcher:
    """A library's entry point."""
    function = getattr(library, name)
    function.restype, function.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
    entry: Launcher = function
    return entry


@functools.cache
def is_hopper(device: torch.device) -> bool:
    """Whether a CUDA device is a Hopper GPU."""
    return torch.cuda.get_device_capability(device) == HOPPER


def why_not_loaded(
    name: str,
    key: K,
    libraries: dict[K, ctypes.CDLL | None],
    load: Callable[[K], object],
    device: torch.device,
) -> str | None:
    """Why a kernel that torch's operators can replace cannot run on a device; None if it can. It is loaded
    then.

    A kernel that cannot be built is tried once in a process, and a warning says why it was not. A kernel that
    is first needed while a CUDA graph is captured is refused, as those of products are: with torch's
    operators in its place each replay would be slower, and nobody would know why.

    Args:
        name: of the kernel, for messages.
        key: of it in `libraries`.
        libraries: what has been loaded; None where it could not be built.
        load: builds it, and puts it into `libraries`.
        device: of the tensors.

    Raises:
        LaunchError: the kernel is not loaded while a CUDA graph is captured.
    """
    if device.type != "cuda":
        return f"the tensors are on {device}"
    if not is_hopper(device):
        return f"{device} is no Hopper GPU"
    if key not in libraries:
        if grouped.capturing(device):  # to load a library would break the capture
            raise LaunchError(
                f"a CUDA graph is being captured and {name} is not loaded; the same call, or "
                "gemm_ladder.layers.precompile for the layers of a model, is needed before"
            )
        try:
            load(key)
        except (BuildError, ToolchainError) as error:
            libraries[key] = None
            warnings.warn(
                f"{name} cannot be built, and torch's own operators do its work: {one_line(error)}",
                stacklevel=3,
            )
    return None if libraries[key] else f"{name} could not be built"


def usable_sms(device: torch.device | int, limit: int = 0) -> int:
    """How many SMs of a GPU to use: all, or `limit`, if that is not 0 and there are more."""
    index = device if isinstance(device, int) else device.index
    total = _sms(torch.cuda.current_device() if index is None else index)
    return min(limit or total, total)


@functools.cache
def _sms(index: int) -> int:
    return int(torch.cuda.get_device_properties(index).multi_processor_count)
