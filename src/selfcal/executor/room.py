"""Whether a cluster has room for the workers that a recipe wants: asked before it is waited for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from selfcal.errors import SelfcalError


class ClusterError(SelfcalError):
    """A cluster cannot be reached, or cannot do what is asked: the text has the way out."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What workers take."""

    workers: int
    cpus: int
    """CPU cores each."""
    gpus: float
    """GPUs each, or the part of one."""
    setting: str = "executor.workers"
    """That says how many."""


def check_room(
    needs: Needs, nodes: Sequence[Mapping[str, float]], most: Mapping[str, float] | None
) -> None:
    """See that all workers fit onto the nodes, or onto those that an autoscaler may bring.

    Args:
        needs: what is wanted.
        nodes: what each node has in all, whoever uses it now: `CPU`, `GPU`.
        most: what an autoscaler may bring the cluster to, or nothing if that is not known; None:
            there is no autoscaler.

    Raises:
        ClusterError: they do not.
    """
    fits = sum(_fits(needs, node) for node in nodes)
    if fits >= needs.workers or (most is not None and (not most or _bring(needs, most))):
        return
    has = " and ".join(
        f"{sum(node.get(kind, 0) for node in nodes):g} {kind}s" for kind in ("CPU", "GPU")
    )
    each = f"{needs.cpus} CPUs" + (f" and {needs.gpus:g} GPUs" if needs.gpus else "")
    grows = ", and its autoscaler cannot bring as many" if most is not None else ""
    way_out = f"set {needs.setting}={fits}" if fits else "set executor.cpus and executor.gpus lower"
    raise ClusterError(
        f"{needs.setting}: {needs.workers} with {each} each do not fit: the cluster has {has} on "
        f"{len(nodes)} nodes, room for {fits}{grows}; {way_out}, or add nodes"
    )


def largest(needs: Needs, nodes: Sequence[Mapping[str, float]]) -> Sequence[Mapping[str, float]]:
    """Of some nodes the one with most room, for those that must be on one node together."""
    return sorted(nodes, key=lambda node: _fits(needs, node))[-1:]


def _fits(needs: Needs, node: Mapping[str, float]) -> int:
    """Workers on one node."""
    cores = int(node.get("CPU", 0) // needs.cpus)
    gpus = node.get("GPU", 0)
    if not needs.gpus:
        return cores
    # a part of a GPU is never put together from two
    return min(
        cores, int(gpus) * int(1 / needs.gpus + 1e-9) if needs.gpus < 1 else int(gpus // needs.gpus)
    )


def _bring(needs: Needs, most: Mapping[str, float]) -> bool:
    """Whether the largest cluster has as much in all."""
    wanted = {"CPU": needs.workers * needs.cpus, "GPU": needs.workers * needs.gpus}
    return all(most.get(kind, 0) >= n for kind, n in wanted.items())
