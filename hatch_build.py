"""The compiled wheel: the modules of a step's path, made by mypyc into one C extension. Off unless it is asked for.

HATCH_BUILD_HOOK_ENABLE_CUSTOM=true pip wheel --no-deps .        needs a C compiler and Python's headers

What is not listed stays Python: what goes through foreign data by recursion without counting, since compiled code keeps
no recursion limit; and what a step asks seldom. docs/decisions/0024 says what a listed module has to do without.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

COMPILED = (
    "checkpoint/everstep_checkpoint/codec.py",
    "checkpoint/everstep_checkpoint/entries.py",
    "checkpoint/everstep_checkpoint/ids.py",
    "scheduler/everstep_scheduler/graph/channels.py",
    "scheduler/everstep_scheduler/graph/coding.py",
    "scheduler/everstep_scheduler/graph/results.py",
    "scheduler/everstep_scheduler/moves/plain.py",
    "scheduler/everstep_scheduler/steps/effects.py",
    "scheduler/everstep_scheduler/steps/failpoints.py",
    "scheduler/everstep_scheduler/steps/loading.py",
    "scheduler/everstep_scheduler/steps/perform.py",
    "scheduler/everstep_scheduler/steps/plan.py",
    "scheduler/everstep_scheduler/steps/settling.py",
    "scheduler/everstep_scheduler/steps/timing.py",
    "workers/everstep_workers/hands.py",
    "workers/everstep_workers/patience.py",
    "workers/everstep_workers/slots.py",
    "workers/everstep_workers/tempo.py",
    "workers/everstep_workers/work.py",
)
GROUP = "everstep"  # the extension is `everstep__mypyc`; each module is a small one that finds itself in it
# Runs in the project's folder. Neither reads pyproject.toml: it is another backend's, and its checks want all that
# tests need. What is not installed here has any type.
SETUP = """
import sys
from mypyc.build import mypycify
from setuptools import Distribution

out, *modules = sys.argv[1:]
options = ["--config-file=", "--explicit-package-bases", "--ignore-missing-imports", f"--cache-dir={out}/cache"]
extensions = mypycify([*options, *modules], opt_level="2", debug_level="0", group_name=%r, target_dir=f"{out}/c")
building = Distribution({"name": "everstep", "ext_modules": extensions}).get_command_obj("build_ext")
building.build_lib, building.build_temp = f"{out}/lib", f"{out}/tmp"
building.ensure_finalized()
building.run()
"""


class Compiled(BuildHookInterface[Any]):
    """Adds what mypyc makes to a wheel, beside the sources: those are what tracebacks show."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile. RuntimeError with what the compiler said, if it fails. An editable install stays Python."""
        if version == "editable":
            return
        self._clear()
        words = [sys.executable, "-c", SETUP % GROUP, str(self._out), *COMPILED]
        env = {**os.environ, "MYPYPATH": os.pathsep.join(dict.fromkeys(each.partition("/")[0] for each in COMPILED))}
        done = subprocess.run(  # noqa: S603  # our interpreter, and words of our own
            words, cwd=self.root, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        if done.returncode:
            raise RuntimeError(f"mypyc failed; without it: HATCH_BUILD_HOOK_ENABLE_CUSTOM=false\n{done.stdout}")
        lib = self._out / "lib"
        made = {str(path): str(path.relative_to(lib)) for path in sorted(lib.rglob("*")) if path.is_file()}
        build_data["force_include"].update(made)
        build_data["pure_python"], build_data["infer_tag"] = False, True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        self._clear()

    @property
    def _out(self) -> Path:
        return Path(self.root, "build", "compiled")

    def _clear(self) -> None:
        shutil.rmtree(self._out, ignore_errors=True)
