"""The other systems that can be compared with, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from planner.costs import CostModel
from planner.peers import flexgen, hcache, kvpr, streaming
from planner.peers.forecast import Forecast
from planner.workload import Workload


@dataclass(frozen=True)
class Peer:
    """Another system. What it would do with a job can be predicted; our engine does not run so."""

    name: str
    forecast: Callable[[CostModel, Workload], Forecast]
    """InfeasibleError where a single request does not fit."""
    summary: str


PEERS = {
    peer.name: peer
    for peer in (
        Peer("flexgen", flexgen.forecast, "its best setting without CPU attention: barriers, unpinned cache"),
        Peer("kvpr", kvpr.forecast, "the first tokens of every cache rebuilt while the rest crosses"),
        Peer("hcache", hcache.forecast, "some layers keep activations, the others K and V"),
        Peer("deepspeed", streaming.deepspeed_forecast, "ZeRO-Inference: whole layers streamed, cache on the GPU"),
        Peer("accelerate", streaming.accelerate_forecast, "CPU offload of Transformers: nothing overlaps"),
    )
}
"""In the order in which reports list them."""
