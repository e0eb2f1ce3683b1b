"""Questions: `interrupt()` in a node or router, and the answers that an attempt brings along.

    answer = interrupt({"approve": 17})     not answered yet: the attempt ends here, the run rests with a question
                                            answered: the node runs again from its top, and here is its answer

Answers belong to questions by their order within the attempt, and within each `@task` of it, as in LangGraph: ask in
the same order each time. Which answers there are is told by whoever runs the attempt.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, cast

from pydantic import TypeAdapter, ValidationError

from everstep_checkpoint.codec import Codec
from everstep_checkpoint.errors import OutsideNode

from .runtime import Command, Runtime
from .writing import StreamWriter


@dataclass(frozen=True)
class Interrupt:
    """A question that a run waits with. `id`: what an answer names. `response_schema`: JSON schema of the answer."""

    value: Any
    id: str = ""
    response_schema: dict[str, Any] | None = None


class GraphBubbleUp(Exception):
    """Ends an attempt, and is no failure of it. Don't catch it: it passes through the node to whoever runs it."""


class GraphInterrupt(GraphBubbleUp):
    """Ends an attempt at a question. Don't catch it: a node that swallows it goes on without an answer."""

    def __init__(self, question: Question) -> None:
        super().__init__(f"question {question.id} waits for its answer")
        self.question = question


class CalledAsked(GraphBubbleUp):
    """Ends an attempt whose node called a graph that waits: for answers to these questions, or at a breakpoint.

    `called`: its run and its thread; `kept`: which earlier answers of the attempt hold good, by their places.
    """

    def __init__(self, called: str, questions: Sequence[Interrupt], kept: Sequence[int]) -> None:
        super().__init__(f"{len(questions)} questions of run {called} wait")
        self.called = called
        self.questions = tuple(questions)
        self.kept = tuple(kept)


class CalledCommand(GraphBubbleUp):
    """Ends the node that called a graph: a node of that one had a Command for its parent, which is what it gives."""

    def __init__(self, command: Command[Any]) -> None:
        super().__init__("a Command for the graph that called")
        self.command = command


class Question(NamedTuple):
    """A question as it is stored. `kept`: which earlier answers hold good, by their places. `error`: what was wrong
    with its own."""

    id: str
    value: bytes
    schema: dict[str, Any] | None
    kept: tuple[int, ...]
    error: str = ""


class Doing(Protocol):
    """What an attempt's task has done already, and how more of it is recorded."""

    def begin(self, key: str, codec: Codec | None = None) -> tuple[Any] | None:
        """The value that is recorded under a key, if one is. Raises InvalidEffect for a key used already."""
        ...

    def undone(self, key: str) -> None:
        """It raised: the key may be used again."""
        ...

    def record(self, key: str, value: Any, codec: Codec | None = None, *, cached: bool = False) -> Any:
        """Record what was done; gives the value as it is stored. `cached`: a cache spoke for it, nothing was done."""
        ...


class Calling(Protocol):
    """Who runs an attempt's `@task` calls."""

    def call(self, task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Begin a call, or take its result from an earlier attempt; a future."""
        ...


class Asking(Protocol):
    """Who runs an attempt, knows its answers and hears what it says. `slotted`: the node holds a worker's slot."""

    slotted: bool

    @property
    def writer(self) -> StreamWriter:
        """Takes what the node tells while it runs."""
        ...

    def ask(self, value: Any, response_schema: Any) -> Any:
        """The answer to the attempt's next question. Raises GraphInterrupt where there is none yet."""
        ...

    @property
    def doing(self) -> Doing:
        """What the attempt's task has done."""
        ...

    @property
    def calls(self) -> Calling:
        """Its `@task` calls."""
        ...

    def config(self) -> dict[str, Any]:
        """What a node gets as its `config`."""
        ...

    def runtime(self) -> Runtime[Any]:
        """What a node gets as its `runtime`."""
        ...


CURRENT: ContextVar[Asking | None] = ContextVar("everstep_attempt", default=None)
PLACE: ContextVar[str] = ContextVar("everstep_place", default="")  # the @task call that runs; empty: the node itself


def interrupt(value: Any, *, response_schema: Any = None) -> Any:
    """Ask, and wait for the answer without holding a worker: the run rests, as `interrupted`.

    `value`: what to ask, of any type that a state may hold. `response_schema`: a JSON schema, or a type (pydantic
    model, dataclass, TypedDict, `int`); an answer that does not fit is refused before anything is written, and a
    type's answer comes as that type.

    The node runs again from its top once answered, and with it what stands before `interrupt()`: keep side effects
    behind it, or give them `runtime.idempotency_key`. Raises OutsideNode where no node runs.
    """
    asking = CURRENT.get()
    if asking is None:
        raise OutsideNode(
            "interrupt() was called where no node runs", fix="call it in a node or router, in the node's own thread"
        )
    return asking.ask(value, response_schema)


def get_stream_writer() -> StreamWriter:
    """The stream writer of the node that runs here; what it is given reaches those who stream in mode `custom`.

    It works in sync and async nodes, and in threads that run in a copy of the node's context. Where nobody listens, it
    does nothing. Raises OutsideNode where no node runs.
    """
    asking = CURRENT.get()
    if asking is None:
        raise OutsideNode("get_stream_writer() was called where no node runs", fix="call it in a node or router")
    return asking.writer


class Answers:
    """An attempt's answers, given out in order. `key`: the task's idempotency key.

    `answers`: (the id of the question answered, the value). One without an id came before its question, and is for the
    first that has no other. One without a value answers nothing: what the node called is to look again.
    """

    def __init__(self, key: str, answers: Sequence[tuple[str, bytes]], codec: Codec) -> None:
        self._key = key
        self._answers = answers
        self._codec = codec
        self._asked = Counter[str]()
        self._at = {question: i for i, (question, _) in enumerate(answers) if question}
        self._early = [i for i, (question, _) in enumerate(answers) if not question]
        self._passed = set[int]()
        self._lock = threading.Lock()

    def next(self, value: Any, response_schema: Any) -> Any:
        """The next answer. Raises GraphInterrupt, UnknownType for a question that can't be stored."""
        question, at = self._next(PLACE.get())
        error = ""
        if at is not None:
            answer = self._codec.decode(self._answers[at][1], "an answer")
            if response_schema is None or isinstance(response_schema, dict):
                return answer
            try:
                return TypeAdapter(cast("type[Any]", response_schema)).validate_python(answer)
            except ValidationError as wrong:
                error = str(wrong)
        encoded = self._codec.encode(value, "the question of interrupt()")
        kept = tuple(i for i in self.kept if i != at)
        raise GraphInterrupt(Question(question, encoded, _schema(response_schema), kept, error))

    def passed(self, waiting: Sequence[str]) -> list[tuple[str, bytes]]:
        """(question, answer) for a graph that the node called, which has these questions. One that came before its
        question goes to the first that has no other. What is passed on is the attempt's no more."""
        with self._lock:
            at = {question: self._at[question] for question in waiting if question in self._at}
            for question in waiting:
                if question not in at and self._early:
                    at[question] = self._early.pop(0)
            self._passed.update(at.values())
            return [(question, self._answers[i][1]) for question, i in at.items()]

    @property
    def left(self) -> list[str]:
        """The questions whose answers were not passed on."""
        return [question for question, i in self._at.items() if i not in self._passed]

    def free(self, questions: Sequence[str]) -> None:
        """Nobody will ask these again: their answers are for what is asked next, as if they had come before it."""
        with self._lock:
            freed = [self._at.pop(question) for question in questions if question in self._at]
            self._early += [i for i in freed if self._answers[i][1]]

    @property
    def kept(self) -> list[int]:
        """The answers that hold good, by their places: those that were not passed on."""
        return [i for i, (_, value) in enumerate(self._answers) if value and i not in self._passed]

    def _next(self, place: str) -> tuple[str, int | None]:
        """The question that is asked now, and where its answer is, if there is one."""
        with self._lock:
            index, self._asked[place] = self._asked[place], self._asked[place] + 1
            question = question_id(self._key, index, place)
            if question in self._at and self._answers[self._at[question]][1]:
                return question, self._at[question]
            return question, self._early.pop(0) if self._early else None


def question_id(key: str, index: int, place: str = "") -> str:
    """32 hex digits: no other question of any task has them."""
    return hashlib.sha256(f"{key} {index} {place}".strip().encode()).hexdigest()[:32]


def _schema(given: Any) -> dict[str, Any] | None:
    if given is None:
        return None
    if isinstance(given, dict):
        return cast("dict[str, Any]", given)
    return TypeAdapter(cast("type[Any]", given)).json_schema()
