"""Every error of everstep, in one tree. Each says what happened, where, and what to do next.

EverstepError
├── GraphError             the graph's definition is wrong; raised while it is built
├── InputError             what a caller or a node handed over can't be taken; nothing was written
│   ├── InvalidInput           input that fails the graph's schema
│   ├── EmptyInputError        nothing to do: no input and nothing to continue
│   ├── InvalidThreadId        None, bool, container, empty or over 512 bytes
│   ├── InvalidResume          an answer to no question, or to one of several without saying which
│   ├── OutsideNode            interrupt(), once() or a @task where no node runs
│   ├── InvalidEffect          an effect's key that is none, or that was used already
│   ├── InvalidUpdateError     a node's return value, or two writes that exclude each other
│   ├── UnknownType            a value whose type is not in the closed table
│   ├── TooLarge               over a cap: state, input, entry
│   └── SigningKeyError        the keys that entries are signed with can't be read, or are none
├── LogError               what is stored can't be trusted or read
│   ├── CorruptEntry           an entry that is not what it says; the thread is left as it is
│   │   └── Forged                 not signed, or for another place, or with an unknown key
│   ├── NewerVersion           written by a newer everstep
│   ├── Conflict               the last checkpoint is not the one the caller built on
│   ├── Trimmed                what was asked for is older than the trim mark
│   └── Rewound                what was being read has lost its end, or is another log
├── RunError               how a run ended, or why it could not begin
│   ├── RunFailed              a node raised; carries the error as text, and is it too where its type is known
│   │   └── NodeTimeoutError       a node was over its timeout
│   ├── NodeDied               the process of an isolated node ended before it answered
│   ├── RunCancelled           somebody cancelled it
│   ├── GraphRecursionError    the recursion limit was reached; the last checkpoint is saved
│   ├── RunConflict            this run id was used with another input
│   ├── ThreadBusy             a run is under way and the request can't wait
│   └── Superseded             what was to be retried has been replaced by a newer input
├── NotFound               a name that nobody knows
│   ├── UnknownGraph   ├── UnknownThread   ├── UnknownRun   └── UnknownNode
└── ServerError            Redis
    ├── NoServer               none can be found or started
    ├── ServerUnavailable      it does not answer, or refuses the login
    ├── ServerFull             maxmemory is reached
    └── ServerUnsuitable       its settings would lose data, or can't keep what a run asks for

DurabilityWarning (a UserWarning): what is written is not as durable as was asked for
"""

from __future__ import annotations

import shlex
from typing import Any, TypeVar

E = TypeVar("E", bound=BaseException)


def caused(error: E, cause: BaseException | None) -> E:
    """What `raise error from cause` does. Where that is compiled, both are said: mypyc passes over `from`."""
    error.__cause__ = cause
    return error


class EverstepError(Exception):
    """Base of all. `thread`, `checkpoint` and `node` say where; `fix` says what to do next."""

    def __init__(
        self,
        what: str,
        *,
        thread: str = "",
        checkpoint: str = "",
        node: str = "",
        fix: str = "",
    ) -> None:
        super().__init__(what)
        self.what = what
        self.thread = thread
        self.checkpoint = checkpoint
        self.node = node
        self.fix = fix

    def __str__(self) -> str:
        named = {"thread": self.thread, "checkpoint": self.checkpoint, "node": self.node}
        where = ", ".join(f"{name} {value!r}" for name, value in named.items() if value)
        what = self.what.rstrip(".")
        said = f"{what} ({where})" if where else what
        return f"{said}. {self.fix}" if self.fix else said

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.what, dict(self.__dict__)))


def type_name(cls: type) -> str:
    """The name under which the log has a class: `module.Name`, or `Name` for a builtin."""
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def _rebuild(cls: type[EverstepError], what: str, state: dict[str, Any]) -> EverstepError:
    """An error survives a process boundary with all it says, whatever its constructor takes."""
    error = cls.__new__(cls)
    Exception.__init__(error, what)
    error.__dict__.update(state)
    return error


class GraphError(EverstepError, ValueError):
    """The graph's definition is wrong. Names the node and says how to mend it."""


class InputError(EverstepError, ValueError):
    """What was handed over can't be taken. Nothing was written."""


class InvalidInput(InputError):
    """The input fails the graph's schema."""


class EmptyInputError(InputError):
    """No input, and nothing on the thread to continue."""


class InvalidThreadId(InputError):
    """A thread id is a str, int or UUID whose text has 1 to 512 bytes."""


class InvalidResume(InputError, RuntimeError):
    """An answer that no question takes, or that does not say which of several it is for. Nothing was written."""


class OutsideNode(InputError, RuntimeError):
    """What only a node can do was called where no node runs."""


class InvalidEffect(InputError):
    """The key of `once()`: none that can be one, or used twice in one attempt. Or too many effects in one task."""


class InvalidUpdateError(InputError):
    """A node returned what can't be applied, or several writes to one key exclude each other."""


class UnknownType(InputError, TypeError):
    """A value's type is not in the closed table of the codec. Names the path to the value."""


class TooLarge(InputError):
    """Over a cap. Names the cap and the size."""


class SigningKeyError(InputError):
    """The keys that entries are signed with can't be read, or are none. Never shows a key."""


class LogError(EverstepError):
    """What is stored can't be trusted or read."""

    def of(self, thread: str) -> None:
        """Say which thread it is, also in the fix: a reader of entries does not know it."""
        self.thread, self.fix = thread, self.fix.replace("THREAD", shlex.quote(thread))


class CorruptEntry(LogError):
    """An entry of the log is not what it says it is. Nothing was changed."""


class Forged(CorruptEntry):
    """Nobody with the key wrote this here: an entry that is not signed, or was signed for another place, or with a key
    that is unknown here; or an index that leads to what no signed entry says."""


class NewerVersion(LogError):
    """An entry was written by a newer everstep."""


class Conflict(LogError):
    """The last checkpoint of the thread is not the one the caller built on."""


class Trimmed(LogError):
    """What was asked for is older than the thread's trim mark."""


class Rewound(LogError):
    """The log that was being read has lost its end, or is another one: what was read of it may be void."""


class RunError(EverstepError):
    """How a run ended, or why it could not begin."""


class RunFailed(RunError):
    """A node raised. `error_type` is the full name of its type, `message` what it said, `task` the task's name.
    `traceback` is its end as the worker wrote it, at most 16,000 characters; empty where there was none.

    Of a builtin type, or one that the client registered, the error is that type, too: `except ValueError` catches it.
    """

    def __init__(
        self, what: str, *, error_type: str = "", message: str = "", traceback: str = "", task: str = "", **where: str
    ) -> None:
        super().__init__(what, **where)
        self.error_type = error_type
        self.message = message
        self.traceback = traceback
        self.task = task


class NodeTimeoutError(RunFailed):
    """A node was over its timeout."""


class NodeDied(RunError):
    """The process of an isolated node ended before it answered; says with which exit code or signal."""


class RunCancelled(RunError):
    """The run was cancelled."""


class GraphRecursionError(RunError, RecursionError):
    """The run reached its recursion limit. Its last checkpoint is saved; it can be continued."""


class RunConflict(RunError):
    """The run id was used before with another input."""


class ThreadBusy(RunError):
    """A run is under way on the thread, and the request can't wait for it."""


class Superseded(RunError):
    """What was to be retried has been replaced by a newer input."""


class NotFound(EverstepError, LookupError):
    """A name that nobody knows."""


class UnknownGraph(NotFound):
    """No graph of this name is published here. Lists those that are."""


class UnknownThread(NotFound):
    """No thread of this id has a log."""


class UnknownRun(NotFound):
    """No run of this id is known on the thread."""


class UnknownNode(NotFound):
    """The graph has no node of this name."""


class ServerError(EverstepError):
    """Something about Redis."""


class NoServer(ServerError):
    """No Redis can be found or started. Names the ways to get one."""


class ServerUnavailable(ServerError):
    """Redis does not answer, or refuses the login."""


class ServerFull(ServerError):
    """Redis has reached maxmemory. Running work waits; nothing is lost."""


class ServerUnsuitable(ServerError):
    """Redis' settings would lose data, or it can't keep the durability that was asked for. Nothing was written."""


class DurabilityWarning(UserWarning):
    """What is written stays so, and the run goes on; but fewer replicas have it than were asked for, or it may not be
    on disk. Says what lacks."""
