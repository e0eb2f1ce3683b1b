"""`everstep demo`: the tour, in three parts, on a Redis of its own.

stage      the embedded server, three workers beside us, what is printed
counting   part 1: one graph, in memory and on workers, with equal history
takeover   part 2: a pipeline over real files; one worker is killed in the middle
looking    part 3: the same things seen with redis-cli, everstep and rq
"""

from __future__ import annotations

from pathlib import Path

from . import counting, looking, takeover
from .stage import Stage


def run(folder: Path | None, workers: int, keep: bool) -> int:
    """The whole tour. 0 if every promise was kept, 1 if one was not; it says which.

    Raises InputError for a folder with too little to read.
    """
    takeover.check(folder or takeover.default_folder())
    with Stage(workers) as stage:
        kept = [counting.show(stage), takeover.show(stage, folder)]
        looking.show(stage, keep)
        if not all(kept):
            stage.say("\nA promise was not kept; see the lines marked x. Please report it.")
            return 1
        if keep:
            stage.stay()
    return 0
