"""Makes the golden logs of the format that this everstep writes. Run it for a new format version, or for a new story:

    python tests/golden/make.py            writes tests/golden/v1-*.jsonl and v1-*.expected.json
    python tests/golden/make.py questions  writes those of one story

The files of released formats are never made again: they are what `tests/test_golden.py` reads for ever.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from everstep_checkpoint import entries as e  # noqa: E402
from everstep_checkpoint.codec import PLAIN  # noqa: E402
from everstep_checkpoint.log import Log  # noqa: E402
from everstep_checkpoint.replay import states, step_of, verify  # noqa: E402
from everstep_scheduler.inline import savers as inline  # noqa: E402
from golden.dump import FOLDER, to_line  # noqa: E402
from golden.stories import STORIES  # noqa: E402

PINNED = SimpleNamespace(getpid=lambda: 56789, gethostname=lambda: "host-1234")


def expected(log: Log, thread: str) -> dict[str, Any]:
    """What a reader must make of a log."""
    report = verify(log, thread)
    assert report.sound, report.problems
    found = {state.n: state for state, _ in states(log, thread)}
    last = found[max(found)]
    return {
        "thread": thread,
        "entries": [[x.id, x.kind] for x in log.read(thread)],
        "states": {
            str(n): {
                "checkpoint_id": state.entry.checkpoint_id,
                "digest": state.digest,
                "channels": {name: base64.b64encode(value).decode() for name, value in state.channels.items()},
                "shown": {name: ascii(PLAIN.decode(value))[:200] for name, value in state.channels.items()},
            }
            for n, state in found.items()
        },
        "open": [[task.task, task.node, task.queue] for task in step_of(log, thread, last.n).tasks],
    }


def scrubbed(line: str) -> str:
    """Tracebacks name the folder of this checkout; no sum covers them."""
    return line.replace(f"{ROOT}/", "").replace(f"{Path(os.__file__).parent}/", "")


def main() -> None:
    named = sys.argv[1:]
    for story in [each for each in STORIES if not named or each.__name__ in named]:
        with patch.object(inline, "os", PINNED), patch.object(inline, "socket", PINNED):
            log, thread = story()
        name = f"v{e.VERSION}-{story.__name__}"
        lines = [scrubbed(to_line(entry)) for entry in log.read(thread)]
        FOLDER.joinpath(f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        text = json.dumps({"story": story.__doc__, **expected(log, thread)}, indent=1)
        FOLDER.joinpath(f"{name}.expected.json").write_text(text + "\n")
        print(f"{name}: {len(lines)} entries, {sum(map(len, lines)):,} bytes")


if __name__ == "__main__":
    main()
