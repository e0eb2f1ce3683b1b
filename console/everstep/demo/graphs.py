"""The graphs of the tour: the examples, `reading` with a journal of each execution beside it.

The examples lie in the package where everstep is installed, and beside the four source roots in a checkout.
"""

from __future__ import annotations

import os
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from everstep_checkpoint.errors import GraphError

JOURNAL_ENV = "EVERSTEP_DEMO_JOURNAL"
PLACES = (Path(__file__).parents[1] / "examples", Path(__file__).parents[3] / "examples")


def example(name: str) -> ModuleType:
    """One of the examples, from its file: no other module of that name can come between. Raises GraphError."""
    path = next((place / f"{name}.py" for place in PLACES if (place / f"{name}.py").is_file()), None)
    if path is None:
        raise GraphError(
            f"the example {name!r} is not there", fix="install everstep whole, or run the demo from a checkout"
        )
    full = f"everstep_example_{name}"
    spec = spec_from_file_location(full, path)
    assert spec is not None and spec.loader is not None
    made = module_from_spec(spec)
    sys.modules[full] = made  # the state's annotations are looked up there
    spec.loader.exec_module(made)
    return made


_reading = example("reading")


def _journaled(task: dict[str, str]) -> dict[str, Any]:
    """Analyse one file, and say so in the journal: one line an execution, whether it is committed or not."""
    if journal := os.environ.get(JOURNAL_ENV):
        file = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(file, f"{task['file']}\n".encode())
        os.close(file)
    found: dict[str, Any] = _reading.analyse(task)
    return found


counting = example("counting").graph
reading = _reading.build(_journaled)
