"""The engine against its oracle: random graphs give LangGraph's history inline, in memory and on Redis."""

from __future__ import annotations

import random
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver as OracleSaver

from everstep_checkpoint.replay import verify
from everstep_scheduler.inline.savers import InMemorySaver, RedisSaver, Saver
from servers import run_seed
from test_plan import OURS, THEIRS, random_graph

GRAPHS = 60


Config = dict[str, Any]


def history(graph: Any, config: Config) -> list[tuple[Any, ...]]:
    found = graph.get_state_history(config)
    return [(s.metadata["source"], s.metadata["step"], sorted(s.next), s.values) for s in found]


def outcome(graph: Any, data: Any, config: Config, **more: Any) -> str:
    """How a run ended, in one word. A run that ends in the very step of its limit is done (LangGraph raises)."""
    try:
        graph.invoke(data, config, **more)
    except Exception as error:  # noqa: BLE001 - whatever it is, both must raise it
        if "Recursion" not in type(error).__name__ or graph.get_state(config).next:
            return type(error).__name__
    return "done"


@pytest.mark.parametrize("kind", ["memory", "redis"])
def test_random_graphs_have_langgraphs_history(kind: str, request: pytest.FixtureRequest) -> None:
    saver: Saver = InMemorySaver() if kind == "memory" else RedisSaver(request.getfixturevalue("redis_url"))
    dice = random.Random(run_seed())
    for _ in range(GRAPHS if kind == "memory" else GRAPHS // 3):
        seed = dice.randrange(2**31)
        config: Config = {"configurable": {"thread_id": f"t{seed}"}, "recursion_limit": 12}
        ours = random_graph(OURS, seed).compile(checkpointer=saver, name="g")
        theirs = random_graph(THEIRS, seed).compile(checkpointer=OracleSaver())
        for data in ({"log": ["x"]}, {"log": ["y"]}):
            mine, his = outcome(ours, data, config), outcome(theirs, data, config, durability="sync")
            assert mine == his, f"seed {seed}"
            assert history(ours, config) == history(theirs, config), f"seed {seed}"
        assert verify(saver.log, f"t{seed}").sound, f"seed {seed}"
