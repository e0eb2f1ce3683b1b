"""Named places where a process can be made to die or stall, for tests. Off, `reach` is one comparison.

EVERSTEP_FAILPOINT=called          dies where it first has a node's result in hand
EVERSTEP_FAILPOINT=called:3        the third time
EVERSTEP_FAILPOINT=called:3:FILE   and only the one process that can make FILE: pools replace their dead
EVERSTEP_FAILPOINT=stop@called:3   stalls there instead, until SIGCONT
"""

from __future__ import annotations

import os
import signal
import threading

VARIABLE = "EVERSTEP_FAILPOINT"
STOP = "stop@"
NAMES = (
    "claimed", "loaded", "called", "effected", "recorded", "settled", "committed", "renewed", "keeping", "kept",
)  # fmt: skip


class Failpoint:
    """One armed place; the `count`-th thread that comes by ends the process as kill -9 does, or stops it."""

    def __init__(self, name: str, count: int = 1, once: str = "", how: signal.Signals = signal.SIGKILL) -> None:
        if name not in NAMES:
            raise ValueError(f"{VARIABLE} names no failpoint: {name!r}; there are {', '.join(NAMES)}")
        self.name = name
        self._left = count
        self._once = once
        self._how = how
        self._lock = threading.Lock()

    @classmethod
    def read(cls, text: str) -> Failpoint | None:
        """From the variable's text; None where it says nothing. Raises ValueError for what is not of its form."""
        if not text:
            return None
        how = signal.SIGSTOP if text.startswith(STOP) else signal.SIGKILL
        name, _, rest = text.removeprefix(STOP).partition(":")
        count, _, once = rest.partition(":")
        return cls(name, int(count or 1), once, how)

    def reached(self, name: str) -> None:
        """A thread comes by."""
        if name != self.name:
            return
        with self._lock:
            self._left -= 1
            if self._left == 0 and self._is_first():
                # To this very thread: SIGSTOP for the process is taken by any of its threads, and ours would go on
                # until then, past the place where it is to stall.
                signal.pthread_kill(threading.get_ident(), self._how)

    def _is_first(self) -> bool:
        if not self._once:
            return True
        try:
            os.close(os.open(self._once, os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            return False
        return True


_armed: Failpoint | None = None


def arm() -> None:
    """Do as the environment says, from now on. Raises ValueError for what is not of the variable's form."""
    global _armed
    _armed = Failpoint.read(os.environ.get(VARIABLE, ""))


def reach(name: str) -> None:
    """Die or stall here, if this process was told to."""
    if _armed is not None:
        _armed.reached(name)


arm()
