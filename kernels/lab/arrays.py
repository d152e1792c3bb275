"""What NumPy arrays and torch tensors have in common, without importing torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

    Array = np.ndarray | torch.Tensor


def is_array(value: Any) -> bool:
    """Whether it is a NumPy array or a torch tensor."""
    return isinstance(value, np.ndarray) or hasattr(value, "data_ptr")


def on_gpu(array: Array) -> bool:
    return not isinstance(array, np.ndarray) and array.is_cuda


def pointer(array: Array) -> int:
    """The address of its first element."""
    return array.ctypes.data if isinstance(array, np.ndarray) else array.data_ptr()


def item_bytes(array: Array) -> int:
    return array.itemsize


def dtype_name(array: Array) -> str:
    """Such as "float32" or "bfloat16", alike for NumPy and torch."""
    return str(array.dtype).removeprefix("torch.")


def strides(array: Array) -> tuple[int, ...]:
    """In elements."""
    if isinstance(array, np.ndarray):
        return tuple(stride // array.itemsize for stride in array.strides)
    return tuple(array.stride())


def is_contiguous(array: Array) -> bool:
    """Whether its elements lie one behind the other."""
    return array.flags.c_contiguous if isinstance(array, np.ndarray) else array.is_contiguous()


def bits(array: Array) -> bytes:
    """All of its elements."""
    return array.tobytes() if isinstance(array, np.ndarray) else np_view(array).tobytes()


def np_view(tensor: torch.Tensor) -> np.ndarray:
    """The bytes of a CPU tensor, which share its memory if it is contiguous."""
    import torch

    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy()


def differs(array: Array, other: Array) -> np.ndarray:
    """bool, of two dimensions, the last one being the arrays': where two arrays of one shape and type have
    different bits."""
    one, two = (np.frombuffer(bits(each), np.uint8).reshape(-1, item_bytes(array)) for each in (array, other))
    last = array.shape[-1] if len(array.shape) else 1
    found: np.ndarray = (one != two).any(axis=1).reshape(-1, last)
    return found


def copied(array: Array) -> Array:
    """A copy with the same strides."""
    if isinstance(array, np.ndarray):
        return np.copy(array, order="K")
    return array.detach().clone()


def assign(array: Array, values: Array) -> None:
    """Write the values into the array."""
    if isinstance(array, np.ndarray):
        array[...] = values
    else:
        array.copy_(values)  # type: ignore[arg-type] # a tensor, as `array` is
