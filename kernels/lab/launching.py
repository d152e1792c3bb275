"""One launch of a kernel: its options, the built kernel, and its arguments in memory."""

from __future__ import annotations

import ctypes
import re
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from gemm_ladder import build
from gemm_ladder.errors import BuildError, EmulatorError, InputError, LaunchError
from gemm_ladder.lab.arrays import assign, is_array, is_contiguous, item_bytes, on_gpu, pointer
from gemm_ladder.lab.parameters import Moved, described, holds_array, packed, parameters_of
from gemm_ladder.lab.recording import Recording
from gemm_ladder.lab.refusals import explain
from gemm_ladder.lab.results import Device, Result
from gemm_ladder.lab.sources import (
    check_template,
    cluster_dims,
    only_kernel,
    parameter_names,
    source_text,
    whole_text,
)
from gemm_ladder.lab.tensor_maps import TensorMap
from gemm_ladder.ref import emulator

if TYPE_CHECKING:
    import torch
    from gemm_ladder.lab.arrays import Array

Dim = int | Sequence[int]


class Options(TypedDict, total=False):
    """How a kernel is built and launched: the keyword arguments that `lab.run` and `lab.sweep` share.

    Attributes:
        grid, block, cluster: blocks of the grid (1), threads of a block (128), blocks of a cluster: a number,
            or up to three for x, y and z. Without `cluster` it is what the kernel's __cluster_dims__ says,
            or 1.
        shared_bytes: dynamic shared memory of a block (0).
        kernel: the kernel's name, with template arguments if it is a template; without it, the source's only
            one.
        defines: macros.
        include: further folders for #include.
        several_writers: names of parameters whose elements more than one thread may write in no order, and
            without atomics; elsewhere that is a fault on the emulator.
        symbols: arrays for __device__ and __constant__ variables of the source, by name: copied to them
            before the launch, and back after it.
        pointed_to: arrays that no argument is but that pointers in a structure lead to, by the names that
            messages give them. Only for the emulator, which allows a kernel no other memory.
    """

    grid: Dim
    block: Dim
    cluster: Dim | None
    shared_bytes: int
    kernel: str | None
    defines: Mapping[str, str | int] | None
    include: Sequence[str | Path]
    several_writers: Collection[str]
    symbols: Mapping[str, Array] | None
    pointed_to: Mapping[str, Array] | None


class _Launch(ctypes.Structure):
    """struct LabLaunch of include/lab.cuh"""

    _fields_ = (
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("cluster", ctypes.c_uint32 * 3),
        ("shared_bytes", ctypes.c_uint32),
        ("stream", ctypes.c_void_p),
        ("arguments", ctypes.POINTER(ctypes.c_void_p)),
    )


class Prepared:
    """A launch whose kernel is built and whose arguments suit it."""

    def __init__(
        self,
        source: str | Path,
        args: Sequence[Any],
        device: Device | None,
        options: Options,
    ) -> None:
        """
        Raises:
            InputError, BuildError, ToolchainError: as `gemm_ladder.lab.run`.
            TypeError: an option that there is not.
        """
        for unknown in set(options) - set(Options.__annotations__):
            raise TypeError(f"lab.run() and lab.sweep() have no keyword argument {unknown!r}")
        cluster, kernel, symbols = (options.get(name) for name in ("cluster", "kernel", "symbols"))
        self.shape = [
            _dim("grid", options.get("grid", 1)),
            _dim("block", options.get("block", 128)),
            _dim("cluster", cluster or 1),
        ]
        self._check_clusters()
        shared_bytes = options.get("shared_bytes", 0)
        if not isinstance(shared_bytes, int) or shared_bytes < 0:
            raise InputError(f"shared_bytes is {shared_bytes!r}; a number of bytes is needed.")
        self.shared_bytes = shared_bytes
        self.args = list(args)
        self.arrays = [one.array if isinstance(one, TensorMap) else one for one in args if holds_array(one)]
        self.symbols = dict(symbols or {})
        for name, array in self.symbols.items():
            if not re.fullmatch(r"\w+(::\w+)*", name) or not is_array(array):
                raise InputError(
                    f"symbols has {name!r}: {described(array)}; the names of __device__ or __constant__ "
                    "variables, and an array for each, are needed."
                )
        self.pointed_to = dict(options.get("pointed_to") or {})
        for name, array in self.pointed_to.items():
            if not is_array(array) or on_gpu(array):
                raise InputError(
                    f"pointed_to has {name!r}: {described(array)}; arrays on the CPU are needed."
                )
        self.arrays += [*self.symbols.values(), *self.pointed_to.values()]
        if device not in (None, "cpu", "cuda"):
            raise InputError(f'device is {device!r}; "cpu" or "cuda" is needed.')
        where = {on_gpu(array) for array in self.arrays}
        if len(where) == 2:
            raise InputError("Some arrays are on a GPU and some are not; all on one device are needed.")
        if device == "cpu" and where == {True}:
            raise InputError('device is "cpu", and the arrays are on a GPU.')
        self.device: Device = device or ("cuda" if where == {True} else "cpu")
        text, path = source_text(source)
        self.text = text
        self.kernel = kernel or only_kernel(text)
        check_template(text, self.kernel)
        self.name = path.stem if path else re.sub(r"\W+", "_", self.kernel)[:64]
        dims = cluster_dims(text, self.kernel) if cluster is None else None
        source = whole_text(
            text, path, f"{self.name}.cu", self.kernel, dims, options.get("defines"), list(self.symbols)
        )
        folders = [*options.get("include", ()), *([path.parent] if path else [])]
        try:
            self.library = _build(source, self.name, self.device, folders)
        except BuildError as error:
            explain(text, self.kernel, error)
            raise
        if dims:
            size = (ctypes.c_uint32 * 3)()
            self.library.gemm_ladder_cluster(size)
            self.shape[2] = list(size)
            self._check_clusters()
        self._check_symbols()
        self.parameters = list(parameters_of(self.library))
        self.names = parameter_names(text, self.kernel, len(self.parameters))
        self.array_names = [name for name, one in zip(self.names, args, strict=False) if holds_array(one)] + [
            *self.symbols,
            *self.pointed_to,
        ]
        several_writers = options.get("several_writers", ())
        for name in several_writers:
            if name not in self.names and name not in self.pointed_to:
                raise InputError(
                    f"several_writers has {name!r}; {self.kernel}'s parameters are {', '.join(self.names)}."
                )
        self.once = {*self.names, *self.pointed_to} - set(several_writers)
        if len(args) != len(self.parameters):
            raise InputError(
                f"{len(args)} arguments are given; {self.kernel} has {len(self.parameters)} parameters: "
                f"{', '.join(self.names)}."
            )

    def _check_clusters(self) -> None:
        for axis, blocks, size in zip("xyz", self.shape[0], self.shape[2], strict=True):
            if blocks % size:
                raise InputError(
                    f"grid has {blocks} blocks along {axis}; a multiple of cluster's {size} is needed."
                )

    def _check_symbols(self) -> None:
        for number, (name, array) in enumerate(self.symbols.items()):
            size = self.library[f"gemm_ladder_symbol_bytes_{number}"]
            size.restype = ctypes.c_int64
            given = item_bytes(array) * int(np.prod(array.shape, dtype=np.int64))
            if size() != given or not is_contiguous(array):
                raise InputError(f"The array for {name} has {given} bytes; {size()} without gaps are needed.")

    def _copy_symbols(self, back: bool) -> None:
        """Copy the arrays to the kernel's variables, or back."""
        for number, (name, array) in enumerate(self.symbols.items()):
            copy = self.library[f"gemm_ladder_symbol_{number}"]
            copy.restype, copy.argtypes = ctypes.c_char_p, [ctypes.c_void_p, ctypes.c_bool]
            if said := copy(pointer(array), back):
                raise LaunchError(f"{name}: {said.decode()}")

    def run(self, seed: int, record: bool, threads: int | None, max_steps: int | None) -> Result:
        self._copy_symbols(back=False)
        result = (
            self._on_gpu() if self.device == "cuda" else self._on_emulator(seed, record, threads, max_steps)
        )
        self._copy_symbols(back=True)
        return result

    def _on_emulator(self, seed: int, record: bool, threads: int | None, max_steps: int | None) -> Result:
        tensors = dict(self.pointed_to)
        for name, one in zip(self.names, self.args, strict=True):
            if holds_array(one):
                tensors[name] = one.array if isinstance(one, TensorMap) else one
        launch, _kept = self._launch(self.args, None)
        started = time.perf_counter()
        with emulator.emulator(seed=seed, record=record, threads=threads, max_steps=max_steps) as seen:
            seen.texts[f"{self.name}.cu"] = self.text  # what the line table calls it if it is no file
            try:
                said = emulator.launch(self.library, launch, tensors, self.once)
            except EmulatorError as fault:
                fault.recording = Recording.of(seen) if record else None
                raise
        if said is not None:
            raise LaunchError(f"{self.kernel}: {said}")
        seconds = time.perf_counter() - started
        if not record:
            return Result("cpu", seen.printed, seconds, seen.steps, seen.notes)
        return Result("cpu", seen.printed, seconds, seen.steps, seen.notes, seen.events, Recording.of(seen))

    def _on_gpu(self) -> Result:
        import torch

        if not torch.cuda.is_available():
            raise LaunchError('device is "cuda", and there is no GPU that torch can use.')
        copies: list[tuple[Array, torch.Tensor]] = []

        def there(array: Array) -> torch.Tensor:
            if on_gpu(array):
                return array  # type: ignore[return-value] # a torch tensor
            tensor = torch.from_numpy(array) if isinstance(array, np.ndarray) else array
            copies.append((array, tensor.cuda()))
            return copies[-1][1]

        args = [
            Moved(one, there(one.array))
            if isinstance(one, TensorMap)
            else there(one)
            if is_array(one)
            else one
            for one in self.args
        ]
        stream = torch.cuda.current_stream()
        launch, _kept = self._launch(args, stream.cuda_stream)
        started = time.perf_counter()
        self.library.gemm_ladder_launch.restype = ctypes.c_char_p
        said = self.library.gemm_ladder_launch(ctypes.byref(launch))
        if said is not None:
            raise LaunchError(f"{self.kernel}: {said.decode()}")
        try:
            stream.synchronize()
        except RuntimeError as error:
            raise LaunchError(f"{self.kernel}: {str(error).splitlines()[0]}") from error
        seconds = time.perf_counter() - started
        for array, copy in copies:
            assign(array, copy.cpu().numpy() if isinstance(array, np.ndarray) else copy)
        return Result("cuda", "", seconds)

    def _launch(self, args: Sequence[Any], stream: int | None) -> tuple[_Launch, list[Any]]:
        """The launcher's argument, and what has to live as long as it."""
        values = [
            packed(one, name, parameter, self.library)
            for one, name, parameter in zip(args, self.names, self.parameters, strict=True)
        ]
        pointers = (ctypes.c_void_p * max(len(values), 1))(*(ctypes.addressof(value) for value in values))
        shape = [(ctypes.c_uint32 * 3)(*size) for size in self.shape]
        arguments = ctypes.cast(pointers, ctypes.POINTER(ctypes.c_void_p))
        return _Launch(*shape, self.shared_bytes, stream, arguments), [values, pointers]


def _dim(name: str, given: Dim) -> list[int]:
    sizes = [given] if isinstance(given, int) else list(given)
    if not 1 <= len(sizes) <= 3 or not all(isinstance(size, int) and size >= 1 for size in sizes):
        raise InputError(f"{name} is {given!r}; a positive number, or up to three, are needed.")
    return sizes + [1] * (3 - len(sizes))


def _build(text: str, name: str, device: Device, folders: Sequence[str | Path]) -> ctypes.CDLL:
    return build.load(
        text,
        target="cuda" if device == "cuda" else "emulator",
        name=name,
        extra_flags=[f"-I{Path(folder).absolute()}" for folder in folders],
    ).lib
