"""What the sites of a simulation run on."""

from dataclasses import dataclass

from medfl.study.sources import Assignment, RunInputs
from medfl.transport.base import Transport


@dataclass(frozen=True, slots=True)
class Engine:
    """workers: as many sites train at once; None for one a core. ray: use Ray, at the
    cluster `address` or on this machine."""

    workers: int | None = None
    ray: bool = False
    address: str | None = None


def make_transport(inputs: RunInputs, assignment: Assignment, engine: Engine) -> Transport:
    """In this process for one worker, else a pool of processes, or Ray's actors where they are asked for."""
    from medfl.transport.process_pool import ProcessPool, worker_count

    count = worker_count(engine.workers, len(assignment.cases))
    if engine.ray:
        from medfl.transport.ray_actors import RayActors

        return RayActors(inputs, assignment.cases, count, engine.address)
    if count > 1:
        return ProcessPool(inputs, assignment.cases, count)
    from medfl.transport.in_process import InProcess

    return InProcess(inputs, assignment.cases)
