"""Part 3: where to look afterwards. Each line is run as it is printed, and what it said is shown, shortened."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys

import click

from .. import show as shown
from .counting import THREAD
from .stage import Stage

LINES_MAX = 9
WIDTH_MAX = 118
TIMEOUT_S = 20.0
RQ = (sys.executable, "-c", "import sys; from rq.cli import main; sys.argv[0] = 'rq'; main()")


def show(stage: Stage, keep: bool) -> None:
    """The same things with the tools at hand."""
    stage.part(3, "What to look at next" + ("" if keep else " (`everstep demo --keep` leaves it all running for you)"))
    url, keys, socket = stage.server.url, stage.site.keys, str(stage.server.socket)
    ours = (sys.executable, "-m", "everstep")
    _run(stage, f"everstep history {THREAD} -n 4", [*ours, "history", THREAD, "-n", "4"])
    _run(stage, "everstep history reading", [*ours, "history", "reading"])
    cli = shutil.which("redis-cli") or shutil.which("valkey-cli")
    for words in (["XLEN", keys.log(THREAD)], ["XREVRANGE", keys.log(THREAD), "+", "-", "COUNT", "1"]):
        said = f"redis-cli -s {socket} {shlex.join(words)}"
        _run(stage, said, [cli, "-s", socket, "--no-raw", *words]) if cli else stage.say(f"\n   $ {said}")
    _run(stage, f"rq info --url {url}", [*RQ, "info", "--url", url])


def _run(stage: Stage, said: str, command: list[str]) -> None:
    stage.say(f"\n   {click.style('$ ' + said, bold=True) if shown.watched() else '$ ' + said}")
    env = {**os.environ, "EVERSTEP_URL": stage.server.url, "NO_COLOR": "1"}
    try:
        done = subprocess.run(  # noqa: S603  # our own words
            command, env=env, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        stage.say(f"     (did not run: {error})")
        return
    lines = [line for line in (done.stdout or done.stderr).splitlines() if line.strip()]
    for line in lines[:LINES_MAX]:
        stage.say("     " + (line if len(line) <= WIDTH_MAX else f"{line[: WIDTH_MAX - 1]}…"))
    if len(lines) > LINES_MAX:
        stage.say(f"     … {len(lines) - LINES_MAX} more lines")
