"""The fast path of a call to its launch: operands checked, plan looked up, kernel launched, all in C++.

`queue` has a function for each kind. It takes a call's operands, and returns None where the call is queued;
bytes, the reason, where its launch was refused; True where nothing was done, but would be if A's scales had
the strides that TMA reads; and False where nothing was done, because the operands are not plain or nobody has
added a plan for their sizes. Such a call goes through `gemm_ladder.checks`, which finds what is wrong or
converts other scales, and `launching`, which adds the plan. So nothing is accepted here that is not accepted
there. Besides the launch itself the fast path takes a microsecond; in Python it took ten.

Operands are plain if the pairs are tuples, the tensors of torch's own class, and their dtypes, shapes,
strides and addresses need no conversion, on the current device, with nothing for autograd to record. Their
elements are those in memory: torch has tensors of its own class, too, that are negated lazily, that stand for
others, or that have no memory, and says so in their dispatch keys. A call that a mode, a trace, a profiler or
a transform of torch.func wants to see is left to Python, too, and so are all calls where forward-mode
derivatives are computed. `load` builds fast_path.cpp, which does the work.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import operator
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from gemm_ladder.arguments import KINDS, M_ALIGNMENT, Kind
from gemm_ladder.errors import LaunchError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from gemm_ladder.build import Job

SOURCE = Path(__file__).with_suffix(".cpp")

Queued: TypeAlias = "bytes | bool | None"


def _not_queued(*operands: object) -> Queued:
    return False


# The functions by kind. Arguments: (lhs, rhs, out), contiguous (lhs, rhs, out, m_indices), masked (lhs, rhs,
# out, masked_m, expected_m), psum (lhs, rhs, out, grouped_layout, expected_m).
queue: dict[Kind, Callable[..., Queued]] = dict.fromkeys(KINDS, _not_queued)

# The fields of Api: functions, objects and numbers of CPython, torch and CUDA by our names for them.
_PYTHON = {
    "get_attr": "PyObject_GetAttr",
    "type_of": "PyObject_Type",
    "tuple_size": "PyTuple_Size",
    "tuple_item": "PyTuple_GetItem",
    "as_pointer": "PyLong_AsVoidPtr",
    "as_int64": "PyLong_AsLongLong",
    "as_uint64": "PyLong_AsUnsignedLongLong",
    "bytes": "PyBytes_FromString",
    "occurred": "PyErr_Occurred",
    "clear": "PyErr_Clear",
    "call": "PyObject_CallObject",
    "pack": "PyTuple_Pack",
    "inc_ref": "Py_IncRef",
    "dec_ref": "Py_DecRef",
    "save_thread": "PyEval_SaveThread",
    "restore_thread": "PyEval_RestoreThread",
}
_TORCH = {
    "data": "aoti_torch_get_data_ptr",
    "sizes": "aoti_torch_get_sizes",
    "strides": "aoti_torch_get_strides",
    "dimensions": "aoti_torch_get_dim",
    "dtype": "aoti_torch_get_dtype",
    "device_type": "aoti_torch_get_device_type",
    "device_index": "aoti_torch_get_device_index",
    "storage_size": "aoti_torch_get_storage_size",
    "storage_offset": "aoti_torch_get_storage_offset",
    "gradients": "aoti_torch_grad_mode_is_enabled",
}
# They may be missing.
_TORCH_CPP = {
    "needs_gradient": "_ZNK3c1010TensorImpl13requires_gradEv",
    "profiler_runs": "_ZN5torch8profiler4impl15profilerEnabledEv",
    "bump_version": "_ZN5torch8autograd4impl12bump_versionERKN2at6TensorE",
    "key_included": "_ZN3c104impl28tls_is_dispatch_key_includedENS_11DispatchKeyE",
}
_CUDA = {"stream": "aoti_torch_get_current_cuda_stream", "current_device": "cudaGetDevice"}
_OBJECTS = {
    "none": None,
    "no": False,
    "yes": True,
    "tuple": tuple,
    "tensor": torch.Tensor,
    "parameter": torch.nn.Parameter,
    "cdata": "_cdata",
    "requires_grad": "requires_grad",
    "key_bits": "raw_repr",
    "level": "_current_level",
    "transform": torch._C._functorch.peek_interpreter_stack,
    "modes": torch._C._len_torch_dispatch_stack,
    "traced": torch._C._get_tracing_state,
    "profiled": torch._C._autograd._profiler_enabled,
    "increment_version": torch._C._increment_version,
    "dispatch_keys": torch._C._dispatch_keys,
    "forward_ad": torch.autograd.forward_ad,
}
_NUMBERS = {
    "e4m3": "aoti_torch_dtype_float8_e4m3fn",
    "fp32": "aoti_torch_dtype_float32",
    "int32": "aoti_torch_dtype_int32",
    "bf16": "aoti_torch_dtype_bfloat16",
    "cuda": "aoti_torch_device_type_cuda",
}
_KEYS = {
    "mode_key": "Python",
    "transform_key": "FuncTorchDynamicLayerFrontMode",
    "trace_key": "Tracer",
}
# The dispatch keys of a tensor whose elements are those in memory, on the CPU and on a GPU: those of its
# device, and those by which autograd and autocast come in between.
_PLAIN_KEYS = ("CPU", "AutogradCPU", "AutocastCPU", "CUDA", "AutogradCUDA", "AutocastCUDA", "ADInplaceOrView")
_CLASSES = (torch.Tensor, torch.nn.Parameter)  # exactly: a subclass may behave differently
_OFFSETS = ("cdata_at", "keys_at")
_WORD = ctypes.sizeof(ctypes.c_uint64)
_TENSOR_WORDS = 24  # of a c10::TensorImpl, at least
_INTEGERS = (*_NUMBERS, *_KEYS, "plain_keys", *_OFFSETS)


class Api(ctypes.Structure):
    """struct Api of fast_path.cpp"""

    _fields_ = tuple(
        (name, ctypes.c_int64 if name in _INTEGERS else ctypes.c_void_p)
        for name in (*_PYTHON, *_TORCH, *_CUDA, *_TORCH_CPP, *_OBJECTS, *_INTEGERS)
    )


class Key(ctypes.Structure):
    """struct Key of fast_path.cpp"""

    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in (
            *("kind", "device_type", "device", "n", "k", "groups", "expected_m"),
            *("num_sms", "alignment"),
        )
    )


_lock = threading.Lock()
_library: ctypes.PyDLL | None = None
_settings = (0, M_ALIGNMENT)  # the number of SMs and the alignment of groups that were set last
_started: Job | None = None  # what the background was asked to build


def load() -> bool:
    """Build fast_path.cpp, if it is not in the cache, and put its functions into `queue`.

    False where it does not build, torch lacks a function, or Python has no global lock, which fast_path.cpp
    relies on: then every call takes the slow path.
    """
    with _lock:
        return _loaded()


def start() -> None:
    """Have fast_path.cpp built in the background, where calls need not wait for it."""
    global _started
    from gemm_ladder.build import background

    if _library is None and _started is None:
        _started = _job()
        background.start([_started])


def _ready() -> bool:
    """As load(), but False while it is being built in the background."""
    if _library is None and _started is not None:
        from gemm_ladder.build import background

        if background.has(_started):
            return False
    return load()


@functools.cache
def _loaded() -> bool:
    from gemm_ladder import build

    global _library
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        return False
    with contextlib.suppress(build.BuildError, build.ToolchainError, AttributeError, OSError):
        library = ctypes.PyDLL(str(build.make(_job()).path))
        library.gemm_ladder_queue_plan.argtypes = [
            *(ctypes.POINTER(Key), ctypes.c_int64, ctypes.c_int64),
            *(ctypes.c_void_p, ctypes.c_int64),
        ]
        library.gemm_ladder_queue_function.argtypes = [ctypes.c_int64]
        library.gemm_ladder_queue_function.restype = ctypes.c_void_p
        library.gemm_ladder_queue_settings.argtypes = [ctypes.c_int64, ctypes.c_int64]
        library.gemm_ladder_queue_fill(ctypes.byref(_api()))
        callable_of = ctypes.pythonapi.PyCFunction_NewEx
        callable_of.argtypes, callable_of.restype = [ctypes.c_void_p] * 3, ctypes.py_object
        for number, kind in enumerate(KINDS):
            queue[kind] = callable_of(library.gemm_ladder_queue_function(number), None, None)
        _library = library
        library.gemm_ladder_queue_settings(*_settings)  # after that: see use()
    return _library is not None


def launched(answer: Queued) -> bool:
    """Whether a function of `queue` has launched the call.

    Raises:
        LaunchError: the launch was refused.
    """
    if isinstance(answer, bytes):
        raise LaunchError(f"the production kernel: {answer.decode()}")
    return answer is None


def _job() -> Job:
    from gemm_ladder import build  # here: importing this module should not need the build

    return build.Job.of(SOURCE, "host")


def add(
    device: torch.device,
    kind: str,
    ms: tuple[int, int],
    n: int,
    k: int,
    groups: int,
    expected_m: int,
    launcher: Callable[[Any], bytes | None],
    num_sms: int,
    settings: tuple[int, int],
) -> None:
    """Launch plain calls of this kind and these sizes on `device` by `launcher` from now on, where these
    settings hold. While fast_path.cpp is being built in the background, nothing is done.

    Args:
        device: with its index, where it is a GPU.
        ms: the least and the largest m, in the masked layout max_m. Ranges that overlap without being equal
            must not be added.
        groups, expected_m: 1 and 0 where the kind has none.
        launcher: a kernel's gemm_ladder_launch.
        num_sms: GroupedArgs.num_sms.
        settings: the arguments of `use` that the launcher was chosen for.
    """
    if _ready() and _library:
        index = -1 if device.index is None else device.index
        key = Key(KINDS.index(kind), _device_type(device.type), index, n, k, groups, expected_m, *settings)
        address = ctypes.cast(launcher, ctypes.c_void_p)  # type: ignore[arg-type] # a function of a library
        _library.gemm_ladder_queue_plan(ctypes.byref(key), *ms, address, num_sms)


def use(num_sms: int, alignment: int) -> None:
    """Launch calls by the plans that were added for these settings: the number of SMs and the alignment of
    groups that were set. Callers set them around single calls, so those of other settings are kept."""
    global _settings
    _settings = (num_sms, alignment)
    if _library:  # else _loaded() passes them on; no lock, as it is held while fast_path.cpp is built
        _library.gemm_ladder_queue_settings(*_settings)


def forget() -> None:
    """Forget all plans, so that the next calls take the slow path and add new ones."""
    if _library:
        _library.gemm_ladder_queue_forget()


def _api() -> Api:
    libraries = [(ctypes.pythonapi, _PYTHON), (_torch("cpu"), _TORCH)]
    if torch.version.cuda:
        libraries.append((_torch("cuda"), _CUDA))  # torch is linked with the CUDA runtime, cudaGetDevice
    functions = {
        field: ctypes.cast(getattr(library, name), ctypes.c_void_p)
        for library, names in libraries
        for field, name in names.items()
    }
    for field, name in _TORCH_CPP.items():
        with contextlib.suppress(AttributeError):
            functions[field] = ctypes.cast(getattr(_torch("cpu"), name), ctypes.c_void_p)
    objects = {field: id(value) for field, value in _OBJECTS.items()}  # they live as long as this module does
    numbers = {field: getattr(_torch("cpu"), name)() for field, name in _NUMBERS.items()}
    numbers |= {field: torch._C._dispatch_key_parse(name).value for field, name in _KEYS.items()}
    return Api(
        **functions,
        **objects,
        **numbers,
        plain_keys=_plain_keys(),
        cdata_at=_offset_of_cdata(),
        keys_at=_offset_of_keys(),
    )


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor is of torch's own class and its elements are those in memory."""
    return type(tensor) in _CLASSES and not torch._C._dispatch_keys(tensor).raw_repr() & ~_plain_keys()


@functools.cache
def _plain_keys() -> int:
    """The bits of _PLAIN_KEYS in a set of dispatch keys."""
    keys = (torch._C.DispatchKeySet(torch._C._dispatch_key_parse(name)) for name in _PLAIN_KEYS)
    return functools.reduce(operator.or_, (one.raw_repr() for one in keys))


def _offset_of_cdata() -> int:
    """Where a tensor's object has the address that its attribute `_cdata` reads, which takes a tenth of a
    microsecond a tensor. 0 if it is not at one and the same place in tensors and parameters."""
    plain = torch.empty(0, device="cpu")  # also where another device is the default
    tensors = (plain, torch.nn.Parameter(plain))
    return _offset_of((id(one), type(one).__basicsize__ // _WORD, one._cdata) for one in tensors)


def _offset_of_keys() -> int:
    """Where torch's C++ object of a tensor has the bits of its dispatch keys. 0 if they are not at one and
    the same place in tensors that differ by their keys."""
    plain, without = (torch.empty(1, device=device) for device in ("cpu", "meta"))
    tensors = (plain, torch._neg_view(plain), without, torch._efficientzerotensor(1, device="cpu"))
    return _offset_of((one._cdata, _TENSOR_WORDS, torch._C._dispatch_keys(one).raw_repr()) for one in tensors)


def _offset_of(objects: Iterable[tuple[int, int, int]]) -> int:
    """The place, in bytes, at which each of the objects has its number, and no other place does; or 0.

    Args:
        objects: for each its address, its size in words of 8 bytes, and the number.
    """
    found = {
        tuple(
            place
            for place, word in enumerate((ctypes.c_uint64 * words).from_address(address))
            if word == number
        )
        for address, words, number in objects
    }
    places = found.pop()
    return _WORD * places[0] if not found and len(places) == 1 else 0


@functools.cache
def _device_type(name: str) -> int:
    return int(getattr(_torch("cpu"), f"aoti_torch_device_type_{name}")())


@functools.cache
def _torch(part: str) -> ctypes.CDLL:
    return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / f"libtorch_{part}.so"))
