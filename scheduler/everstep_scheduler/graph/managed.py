"""Managed values: keys of a state that the engine fills in, by the step. Never stored, never written. Pure.

    class State(TypedDict):
        left: RemainingSteps      # at each node and router: steps until the recursion limit, this one included
        last: IsLastStep          # whether this is the last one

Names and values are LangGraph's (`langgraph.managed`).
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple, NotRequired, Required, get_args, get_origin


class Steps(NamedTuple):
    """Where a run stands: the number of the step under way, and that at which it stops."""

    step: int = 0
    stop: int = 0


NO_STEPS = Steps()


class Managed:
    """A value that is made for each task."""

    @staticmethod
    def of(steps: Steps) -> Any:
        """The value at a step."""
        raise NotImplementedError


class RemainingStepsManager(Managed):
    """How many steps the run may still take, the one under way included."""

    @staticmethod
    def of(steps: Steps) -> int:
        return steps.stop - steps.step


class IsLastStepManager(Managed):
    """Whether the step under way is the last that the run may take."""

    @staticmethod
    def of(steps: Steps) -> bool:
        return steps.step == steps.stop - 1


RemainingSteps = Annotated[int, RemainingStepsManager]
IsLastStep = Annotated[bool, IsLastStepManager]


def managed_in(annotation: Any) -> type[Managed] | None:
    """The manager that a key's annotation names; None for a key that is stored."""
    while get_origin(annotation) in (Required, NotRequired):
        annotation = get_args(annotation)[0]
    last = get_args(annotation)[-1] if get_origin(annotation) is Annotated else None
    return last if isinstance(last, type) and issubclass(last, Managed) else None
