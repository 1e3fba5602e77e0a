"""A process that starts the runs which tests kill: `python lives.py`, commands on stdin, one a line, as JSON.

    {"inputs": <RunInputs>, "run": "<folder>"}       start or, when the folder holds a run, go on with it

A child does it; its id is printed, and its exit code when it has ended.
"""

import json
import os
import sys
from pathlib import Path


def child(command: dict[str, str]) -> int:
    from medfl.coordinator.observer import Observer
    from medfl.coordinator.runner import inputs_of, simulate
    from medfl.study.sources import RunInputs

    run = Path(command["run"])
    if (run / "journal.db").exists():
        simulate(inputs_of(run), run, Observer(), workers=1, resume=True)
    else:
        simulate(RunInputs.model_validate(command["inputs"]), run, Observer(), workers=1)
    return 0


def main() -> None:
    # what the children need is imported before the first of them starts
    import torch

    import medfl.learning.patients.private_sgd
    import medfl.privacy.accounting.pld
    import medfl.transport.host  # noqa: F401

    torch.set_num_threads(1)
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            try:
                os._exit(child(json.loads(line)))
            except BaseException as error:
                os.write(2, f"{error!r}\n".encode())
                os._exit(1)
        os.write(1, f"{pid}\n".encode())
        os.write(1, f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n".encode())


if __name__ == "__main__":
    main()
