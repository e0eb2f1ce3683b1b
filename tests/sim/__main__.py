"""Run schedules, or one again with all that happened in it.

python -m sim                 1000 schedules from a random seed on
python -m sim 17              schedule 17, and what happened
python -m sim 17 500          500 schedules from 17 on
"""

from __future__ import annotations

import secrets
import sys
import time
import traceback

from .schedule import Failed, run, run_all


def main(args: list[str]) -> int:
    first = int(args[0]) if args else secrets.randbelow(10**6) * 1000
    count = int(args[1]) if len(args) > 1 else 1 if args else 1000
    began = time.process_time()
    try:
        if count == 1:
            told = run(first, tells=True)
            print(*told.done, sep="\n")
            turns = told.turns
        else:
            turns = run_all(range(first, first + count))
    except Failed as failed:
        traceback.print_exception(failed)
        print(*failed.done, sep="\n")
        return 1
    spent_s = time.process_time() - began
    print(f"{count} schedules from {first} on: {spent_s:.1f} s of a core, {turns} turns, all held")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
