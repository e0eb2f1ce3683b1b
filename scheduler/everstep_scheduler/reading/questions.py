"""Questions that wait on a thread, and the run that brings their answers.

    open_step(log, thread) ──► Told ──interrupts──► [Interrupt(value, id), ...]
                                └────resume_of(answer)──► moves.Start, whose script checks once more what is asked

An answer is matched and checked here, before anything is written: by its question's id, or by being the only one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn

from pydantic_core import to_jsonable_python

from everstep_checkpoint import entries as e
from everstep_checkpoint.codec import PLAIN, Codec
from everstep_checkpoint.errors import Conflict, EverstepError, InvalidResume, ThreadBusy
from everstep_checkpoint.log import Log
from everstep_checkpoint.sound import sound

from ..graph.asking import Interrupt
from ..graph.schema import as_dict
from ..moves.contract import MOVE_MAX, Answered, Start
from ..moves.record import Config, input_sum, start_with
from .children import DEPTH_MAX
from .derive import Reader, Task, Told
from .frames import Frame, frame_at

_ID = re.compile(r"[0-9a-f]{32}")
SHOWN_MAX = 5
VOID = e.wrap(b"")  # an answer that says nothing


def step_told(log: Log, thread: str, frame: Frame | None, facts: Iterable[e.Entry]) -> Told:
    """What the facts of one step say about its tasks. `frame` None: the step before the first checkpoint."""
    reader = Reader(birth=frame.state.birth if frame is not None else "")
    if frame is not None:
        for part in frame.parts:
            reader.feed(part)
        reader.feed(frame.state.entry)
    for fact in facts:
        if fact.kind == "run_started" and (of := fact.ref("of")):
            for waited in log.read(thread, of, of):
                reader.feed(waited) if waited.kind == "run_queued" else None
        reader.feed(fact)
    return reader.told()


@sound
def open_step(log: Log, thread: str) -> Told | None:
    """The thread's open step; None for a thread without a log. Raises LogError."""
    head = log.head(thread)
    if head is None:
        return None
    if head.n == 0:
        return step_told(log, thread, None, log.read(thread, "0-1", "0"))
    frame = frame_at(log, thread, head.n)
    return step_told(log, thread, frame, frame.facts)


def interrupts(told: Told, codec: Codec = PLAIN) -> list[Interrupt]:
    """The questions that wait, in task order."""
    return [found for task in told.tasks if task.place == "asked" for found in asked(task, codec)]


def asked(task: Task, codec: Codec = PLAIN) -> list[Interrupt]:
    """What a task asked last, one question or those of what it called; none if it never did. Raises CorruptEntry."""
    return [] if task.asks is None else questions(task.asks, codec)


def questions(fact: e.Entry, codec: Codec = PLAIN) -> list[Interrupt]:
    """The questions of a `task_paused`: with `called` those of another thread, in lists. Raises CorruptEntry."""
    ids, schema = fact.text("question").split(), fact.json("schema")
    if not ids:
        return []
    value: Any = codec.decode(fact.value("asks") or b"\xc0", "a question")
    if "called" not in fact.raw:
        return [Interrupt(value, ids[0], schema)]
    values, schemas = _listed(value), _listed(schema)
    if not len(values) == len(schemas) == len(ids):
        raise fact.corrupt("its questions don't fit together")
    return [Interrupt(*each) for each in zip(values, ids, schemas, strict=True)]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []  # pyright: ignore[reportUnknownVariableType]


def looking_of(
    log: Log, thread: str, run: str, config: Config, *, graph: str, queue: str, codec: Codec = PLAIN
) -> Start | None:
    """The run that continues where tasks wait with questions that what they called asks no more, for its state was
    edited since: they are to look again. None if there are none; then nothing but a plain continue is to be done.

    As the same run id is known: it is a `continue` to whoever sends it again.
    """
    told = open_step(log, thread)
    waiting = (task for task in told.tasks if task.place == "asked") if told is not None and not told.running else ()
    stale = ((task.task, next(_gone(log, task), "")) for task in waiting)
    answers = [Answered(task, question, VOID) for task, question in stale if question][:MOVE_MAX]
    if told is None or not answers:
        return None
    return start_with(
        config.record("resume"), (), thread=thread, run=run, graph=graph, queue=queue, codec=codec, answers=answers,
        at=(told.n, told.digest), insum=input_sum(graph, "continue", ()),
    )  # fmt: skip


def _gone(log: Log, task: Task, depth: int = DEPTH_MAX) -> Iterator[str]:
    """The questions of a task that are asked no more where they came from."""
    called = task.asks.text("called").partition(" ")[2] if task.asks is not None else ""
    told = open_step(log, called) if called and depth else None
    waiting = waits_with(told) if told is not None else {}
    for question in task.question.split() if told is not None else ():
        if question not in waiting or question in _gone(log, waiting[question], depth - 1):
            yield question


def dropped(log: Log, thread: str) -> list[str]:
    """Questions that an edit of the thread's state took away before anybody answered them, in order; none once an
    answer came after that edit: it may have been theirs."""
    asked, gone = dict[str, None](), dict[str, None]()
    for entry in log.pages(thread):
        if entry.is_checkpoint:
            gone, asked = gone | asked, {}
        elif entry.kind == "task_paused":
            asked |= dict.fromkeys(entry.text("question").split())
        elif entry.kind == "task_answered":
            asked.pop(entry.text("question"), None)
            gone.clear()
    return list(gone)


def waits_with(told: Told) -> dict[str, Task]:
    """question -> the task that waits with it, in task order."""
    return {each: task for task in told.tasks if task.place == "asked" for each in task.question.split()}


def resume_of(
    log: Log,
    thread: str,
    run: str,
    resume: object,
    config: Config,
    *,
    graph: str,
    queue: str,
    codec: Codec = PLAIN,
    again: bool = False,
) -> Start:
    """The run that answers. `resume`: the answer, or a dict of answers by question ids.

    `again`: the run was begun before, perhaps: no answers are matched, the moves only tell whether it is the same one.
    Raises InvalidResume, UnknownType, TooLarge.
    """
    told = None if again else open_step(log, thread)
    answers = () if told is None else answers_of(told, resume, codec, thread)
    raw = codec.encode(resume, "the answer")
    return start_with(
        config.record("resume"), (), thread=thread, run=run, graph=graph, queue=queue, codec=codec, answers=answers,
        at=None if told is None else (told.n, told.digest), insum=input_sum(graph, "resume", [("resume", raw)]),
    )  # fmt: skip


def answers_of(told: Told, resume: object, codec: Codec, thread: str) -> list[Answered]:
    """Which task gets what, checked. Without a question, the first open task gets it early: it may ask when it runs.

    Raises InvalidResume, UnknownType.
    """
    waiting = waits_with(told)
    by_id = _by_id(resume)
    if by_id is None and not waiting:
        first = next((task for task in told.tasks if task.place != "done"), None)
        return [] if first is None else [Answered(first.task, "", _encoded(resume, codec))]
    if by_id is None and len(waiting) > 1:
        _refuse(f"{len(waiting)} questions wait, and the answer does not say which it is for", waiting, thread)
    given = dict.fromkeys(waiting, resume) if by_id is None else by_id
    if not given:
        _refuse("an empty dict answers nothing", waiting, thread)
    if unknown := [each for each in given if each not in waiting]:
        _refuse(f"no question {unknown[0]} waits", waiting, thread)
    for question, answer in given.items():
        _check(waiting[question], question, answer, thread)
    order = [question for question in waiting if question in given]
    return [Answered(waiting[q].task, q, _encoded(given[q], codec)) for q in order]


def _by_id(resume: object) -> dict[str, Any] | None:
    """The answers by question, if that is what they are: a dict whose keys are all question ids (LangGraph's rule)."""
    given = as_dict(resume)
    return given if given is not None and all(isinstance(k, str) and _ID.fullmatch(k) for k in given) else None


def _encoded(answer: object, codec: Codec) -> bytes:
    return e.wrap(codec.encode(answer, "the answer"))


def _check(task: Task, question: str, answer: object, thread: str) -> None:
    """The answer as JSON against the question's schema."""
    schema = next((each.response_schema for each in asked(task) if each.id == question), None)
    if schema is None:
        return
    import jsonschema

    plain = to_jsonable_python(answer, fallback=str)
    try:
        jsonschema.validate(plain, schema)
    except jsonschema.ValidationError as error:
        raise InvalidResume(
            f"the answer to question {question} does not fit: {error.json_path}: {error.message}",
            thread=thread,
            node=task.node,
            fix="its schema is in get_state(config).interrupts; nothing was written",
        ) from None
    except jsonschema.SchemaError:
        return  # the node's mistake: no answer could ever fit it


def _refuse(what: str, waiting: Sequence[str] | dict[str, Task], thread: str) -> NoReturn:
    shown = ", ".join(list(waiting)[:SHOWN_MAX]) or "none"
    raise InvalidResume(what, thread=thread, fix=f"Command(resume={{id: answer}}); ids that wait: {shown}")


def refused(status: str, thread: str) -> EverstepError | None:
    """The error for a run that did not begin, for its thread is not as it was when looked at: stale, gone, dying."""
    match status:
        case "stale":
            return _gone_on(thread)
        case "gone":
            return _deleted_meanwhile(thread)
        case "dying":
            return dying(thread)
        case _:
            return None


def _deleted_meanwhile(thread: str) -> Conflict:
    """The error for a run at a checkpoint that is no longer there when it is to begin."""
    return Conflict(
        "the checkpoint is not there any more: the thread was deleted, or begun anew, meanwhile",
        thread=thread,
        fix="look at its history again",
    )


def dying(thread: str) -> ThreadBusy:
    """The error for a run on a thread that is being deleted."""
    return ThreadBusy(
        "the thread is being deleted, with what its tasks called",
        thread=thread,
        fix="try again when that is done; if its deleter is gone, delete it once more",
    )


def _gone_on(thread: str) -> InvalidResume:
    """The error for an answer whose question changed between looking and answering."""
    return InvalidResume(
        "the question was answered by somebody else, or the thread has gone on",
        thread=thread,
        fix="look at get_state(config).interrupts again",
    )
