"""The ranks in a circle: chunks travel from neighbor to neighbor while the caller uses them."""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor


class Ring:
    """The ranks of a group in a circle, seen from this rank; without a group, a ring of one."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self.group = group
        self.rank = dist.get_rank(group) if group else 0
        self.size = dist.get_world_size(group) if group else 1

    def shift(self, tensor: Tensor) -> tuple[list[dist.Work], Tensor]:
        """Start sending a tensor to the next rank and receiving the previous rank's.

        Returns the work to wait for before the received tensor is used, and that tensor.
        """
        received = torch.empty_like(tensor)

        # Both operations start together: if every rank sent first and then received, all could wait
        # for each other.
        following, previous = (self._global((self.rank + step) % self.size) for step in (1, -1))
        operations = [
            dist.P2POp(dist.isend, tensor, following, self.group),
            dist.P2POp(dist.irecv, received, previous, self.group),
        ]
        return dist.batch_isend_irecv(operations), received

    def _global(self, rank: int) -> int:
        assert self.group is not None
        return dist.get_global_rank(self.group, rank)

    def chunks(self, local: Float[Tensor, "b d"]) -> Iterator[tuple[int, Float[Tensor, "b d"]]]:
        """Every rank's chunk as (owner, chunk), this rank's own first.

        While the caller uses one chunk, the next one travels. Of three ranks, rank 0 gets the
        chunks of the owners 0, 2, 1; rank 1 those of 1, 0, 2.
        """
        chunk = local
        for hop in range(self.size):
            # After `hop` shifts the chunk here comes from `hop` ranks back. The last one stops.
            works, received = self.shift(chunk) if hop + 1 < self.size else ([], chunk)
            yield (self.rank - hop) % self.size, chunk
            for work in works:
                work.wait()
            chunk = received

    def sum(self, tensor: Tensor) -> Tensor:
        """The tensor, replaced by its sum over ranks."""
        if self.group is not None:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def max(self, tensor: Tensor) -> Tensor:
        """The tensor, replaced by its element-wise maximum over ranks."""
        if self.group is not None:
            dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self.group)
        return tensor
