"""The processes that share a layer: which of them this is, and which part is its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from gemm_ladder.errors import InputError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    Group = dist.ProcessGroup | DeviceMesh | None


class Ranks:
    """The processes of a group of torch.distributed, each with its rank.

    Args:
        group: a process group, or a DeviceMesh of one dimension, such as mesh["tp"]; None: all processes.

    Attributes:
        group: the process group.
        rank: of this process in it.
        size: how many processes it has.

    Raises:
        InputError: torch.distributed is not initialised, `group` is none of these, or this process is not in
            it.
    """

    def __init__(self, group: Group) -> None:
        if not dist.is_available() or not dist.is_initialized():
            raise InputError(
                "torch.distributed is not initialised; torch.distributed.init_process_group is needed before "
                "a layer is shared"
            )
        found: Any = group
        if group is None:
            found = dist.group.WORLD
        elif hasattr(found, "mesh_dim_names"):  # a DeviceMesh, whose module need not be imported for others
            if found.ndim != 1:
                raise InputError(
                    f"the mesh has {found.ndim} dimensions; one, such as mesh['tp'], is needed to share a "
                    "layer over"
                )
            found = found.get_group()
        if found is dist.GroupMember.NON_GROUP_MEMBER:
            raise InputError("this process is not in the group; one that it is in is needed")
        if not isinstance(found, dist.ProcessGroup):
            raise InputError(
                f"group is of type {type(group).__name__}; a ProcessGroup, a DeviceMesh or None is needed"
            )
        self.group: dist.ProcessGroup = found
        self.rank, self.size = dist.get_rank(found), dist.get_world_size(found)

    def __deepcopy__(self, known: dict[int, Any]) -> Ranks:
        """Itself: copies of a layer are shared by the same processes."""
        return self

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.size}"

    def _types(self) -> list[str]:
        """The types of devices whose tensors the group moves."""
        return [one.split(":")[0] for one in str(dist.get_backend_config(self.group)).split(",")]

    def check_device(self, device: torch.device) -> None:
        """Refuse tensors that the group cannot move."""
        types = self._types()
        if device.type not in types and device.type != "meta":
            raise InputError(
                f"the weights are on {device} and the group moves tensors of {', '.join(types)}; one "
                "device is needed for both"
            )

    def device_of_messages(self, preferred: torch.device) -> torch.device:
        """A device whose tensors the group moves: the preferred one, if it does."""
        types = self._types()
        if preferred.type in types:
            return preferred
        if "cuda" in types and torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")

    def share(self, name: str, count: int) -> range:
        """The part of `count` that is this process's: contiguous, and as large as the others', or one larger
        in the first processes. Raises InputError where one would have nothing."""
        if count < self.size:
            raise InputError(
                f"{name} is {count} and there are {self.size} ranks; at least one for each is needed"
            )
        each, more = divmod(count, self.size)
        begin = self.rank * each + min(self.rank, more)
        return range(begin, begin + each + (self.rank < more))

    def blocks(self, name: str, count: int, multiple: int) -> range:
        """The part of `count` that is this process's: all parts are equal and multiples of `multiple`.

        Raises InputError where they cannot be."""
        if count % (self.size * multiple):
            raise InputError(
                f"{name} is {count} and there are {self.size} ranks; a multiple of {self.size * multiple} is "
                f"needed, since a scale of the weight belongs to {multiple} x {multiple}"
            )
        each = count // self.size
        return range(self.rank * each, (self.rank + 1) * each)

    def agree(self, **values: Any) -> list[dict[str, Any]]:
        """What each process gives for these names, by rank; every process has to ask."""
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, values, group=self.group)
        return found
