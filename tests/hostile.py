"""What somebody who may write to Redis could plant: values, jobs, entries, manifests and messages that ask to be run.

Each asks for `touch FILE`, or for the module `planted`, in one of the ways that libraries of this kind have obeyed:
RQ's function names, callbacks and pickles; LangGraph's JSON constructors (CVE-2025-64439) and msgpack exts
(CVE-2026-28277); LangChain's `lc` (CVE-2025-68664); jsonpickle, PyYAML; names of types and zones in our own table.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgpack  # type: ignore[import-untyped, unused-ignore]

from everstep_checkpoint.types import DATETIME, ENUM, OBJECT, SET, TUPLE

FUNCTION = "everstep.run_node"
_pack: Any = msgpack.packb
_Ext: Any = msgpack.ExtType


def pickled(command: str) -> bytes:
    """A pickle, by hand: unpickled, it runs a command. In a job's place it is one call more than RQ asks for."""
    return f"cos\nsystem\n(V{command}\ntR.".encode()


def ext(code: int, value: object) -> bytes:
    packed: bytes = _pack(_Ext(code, _pack(value)))
    return packed


def values(touched: Path) -> dict[str, bytes]:
    """Encoded values of a channel, an input, a result, an answer."""
    command = f"touch {touched}"
    lc = {"lc": 2, "type": "constructor", "id": ["os", "system"], "method": None, "args": [command], "kwargs": {}}
    moment = struct.pack(">HBBBBBIB", 2024, 1, 1, 0, 0, 0, 0, 0)
    told: dict[str, object] = {
        "a LangGraph constructor": lc,
        "a LangChain constructor": {"lc": 1, "type": "constructor", "id": ["planted", "Fires"], "kwargs": {}},
        "a LangChain secret": {"lc": 1, "type": "secret", "id": ["PATH"]},
        "a jsonpickle": {"py/reduce": [{"py/function": "os.system"}, {"py/tuple": [command]}]},
        "a jsonpickle object": {"py/object": "planted.Fires"},
        "a type beside its data": {"__type__": "planted.Fires", "__class__": "os.system", "$type": "planted"},
        "a YAML tag": f"!!python/object/apply:os.system ['{command}']",
        "a template": "{{ ''.__class__.__mro__[1].__subclasses__() }} ${jndi:ldap://127.0.0.1:1/x} %(os.system)s",
        "a pickle": pickled(command),
        "a packed pickle": zlib.compress(pickled(command)),
    }  # fmt: skip
    encoded: dict[str, bytes] = {name: _pack(value) for name, value in told.items()}
    for code in range(9):  # langgraph.checkpoint.serde.jsonplus: constructors, methods, pydantic, numpy
        encoded[f"a LangGraph ext {code}"] = ext(code, ["os", "system", command, "model_validate_json"])
    encoded |= {
        "an object of a module": ext(OBJECT, ["planted.Fires", {"command": command}]),
        "an object that is a call": ext(OBJECT, ["os.system", {"command": command}]),
        "a message that is none": ext(OBJECT, ["langchain_core.load.load", {"obj": lc}]),
        "a member of a module": ext(ENUM, ["planted.Colour", "RED"]),
        "a member that is a call": ext(ENUM, ["builtins.eval", "__import__('planted')"]),
        "a tuple of objects": ext(TUPLE, [_Ext(OBJECT, _pack(["planted.Fires", {}]))]),
        "a set of calls": ext(SET, [_Ext(OBJECT, _pack(["subprocess.Popen", {"args": "true"}]))]),
        "a zone that is a module": _pack(_Ext(DATETIME, moment + b"zplanted/Zone")),
        "a zone that is a package": _pack(_Ext(DATETIME, moment + b"zplanted")),
        "a timestamp": b"\xd6\xff\0\0\0\0",
    }
    return encoded


def jobs(touched: Path) -> dict[str, dict[str, bytes | str]]:
    """Hashes of RQ jobs: foreign ones, and one that names our function."""
    command = f"touch {touched}"
    bomb = pickled(command)
    callbacks = {f"{when}_callback_name": "os.system" for when in ("success", "failure", "stopped")}
    hook = json.dumps([{"url": "http://127.0.0.1:1/x", "events": ["finished", "failed", "stopped"], "timeout": 1}])
    base: dict[str, bytes | str] = {"created_at": "2026-01-01T00:00:00.000000Z", "origin": "shop", "status": "queued"}
    names = ("os.system", "eval", "planted.fires", "subprocess.Popen", "rq.job.Job.fetch", "everstep.cli.main")
    called = {name: json.dumps([name, None, [command], {}]) for name in names}
    ours = json.dumps([FUNCTION, None, [], {"thread": "nobody", "task": "p0", "n": 1}])
    return {
        **{name: {**base, "data": data} for name, data in called.items()},
        "packed": {**base, "data": zlib.compress(bomb)},
        "bare": {**base, "data": bomb},
        "an instance": {**base, "data": json.dumps(["run", "planted.Fires", [], {}])},
        "called back": {**base, **callbacks, "data": ours, "webhooks": hook, "result": bomb, "meta": bomb},
        "dependent": {**base, "data": ours, "dependency_ids": '["x"]', "retries_left": "3", "repeats_left": "3"},
        "told": {**base, "data": "x", "everstep": json.dumps({"thread": "os.system", "task": "__import__('planted')"})},
    }


def manifest(name: str) -> str:
    """A graph whose schema asks to fetch, and whose names ask to be called."""
    schema = {
        "$schema": "http://127.0.0.1:1/schema", "$id": "http://127.0.0.1:1/", "type": "object",
        "properties": {"x": {"$ref": "http://127.0.0.1:1/x"}, "y": {"$dynamicRef": "file:///etc/passwd"}},
        "allOf": [{"$ref": "python:planted"}], "format": "os.system",
    }  # fmt: skip
    said: Mapping[str, Any] = {
        "name": name, "version": "__import__('planted')", "queue": "shop", "queues": ["shop"],
        "nodes": {"os.system": {"queue": "shop"}, "planted.fires": {"queue": "shop"}}, "input_schema": schema,
        "output_schema": schema, "channels": {"x": "planted.reducer", "y": "operator.add"},
        "edges": [["__start__", "os.system", None, False], ["os.system", "__end__", "x", True]],
        "joins": ["planted.join"], "mermaid": "%%{init: {'securityLevel': 'loose'}}%%", "published_at": "x",
    }  # fmt: skip
    return json.dumps(said)


def messages(touched: Path) -> dict[str, dict[str, str]]:
    """Messages for the inbox."""
    lc = {"lc": 2, "type": "constructor", "id": ["os", "system"], "kwargs": {"command": f"touch {touched}"}}
    return {
        "a constructor": {"graph": "shop", "thread": "in1", "input": json.dumps({"x": lc})},
        "a graph to import": {"graph": "planted:graph", "thread": "in2", "input": "{}"},
        "a hostile graph": {"graph": "evil", "thread": "in3", "input": json.dumps({"x": 1})},
        "an expression": {"graph": "shop", "thread": "in4", "input": "__import__('planted')"},
        "a pickle": {"graph": "shop", "thread": "in5", "input": "cos\nsystem\n(S'true'\ntR."},
        "a strategy": {"graph": "shop", "thread": "in6", "input": "{}", "if_busy": "planted.strategy"},
    }
