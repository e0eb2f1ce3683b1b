"""LangGraph's own classes where everstep's belong: the likeliest slip of who changes the imports of a graph."""

from __future__ import annotations

from everstep_checkpoint.errors import InvalidUpdateError


def theirs(value: object) -> str:
    """`LangGraph's Command`, if the value is of a class of LangGraph's, or such a class; else nothing."""
    cls = value if isinstance(value, type) else type(value)
    return f"LangGraph's {cls.__name__}" if cls.__module__.split(".")[0] == "langgraph" else ""


def imports(value: object) -> str:
    """What to do about it: the import of the class that has the same name here."""
    cls = value if isinstance(value, type) else type(value)
    return f"from everstep import {cls.__name__}"


def refuse_theirs(value: object, what: str) -> None:
    """Raises InvalidUpdateError for an instance of LangGraph's classes, whose fields would pass for updates."""
    if whose := theirs(value):
        raise InvalidUpdateError(f"{what} is {whose}", fix=imports(value))
