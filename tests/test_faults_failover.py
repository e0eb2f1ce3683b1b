"""A replica takes over that lacks the last moments: the promise is then an earlier whole step, and no more."""

from __future__ import annotations

from pathlib import Path

from everstep_checkpoint.replay import verify
from faults import Fleet
from pairs import paired
from proxy import FaultProxy
from servers import StartServer, plain_client, wait_for

CHAINS = 12


def test_after_a_failover_to_a_replica_that_is_behind_runs_go_on_from_whole_steps(
    own_server: StartServer, tmp_path: Path
) -> None:
    pair = paired(own_server)
    naps = {"b": 0.1, "c": 0.1}
    with Fleet(pair.primary.url, tmp_path) as before, FaultProxy(pair.primary.socket) as proxy:
        threads = [before.submit(graph, naps=naps) for graph in ("chain", "achain") for _ in range(CHAINS // 2)]
        before.worker("chain", "achain", via=proxy.url, concurrency=4)
        wait_for(lambda: sum(x.phase == "out" for x in before.lines()) > CHAINS, 20, "the first half")
        with plain_client(pair.replica.url) as admin:
            admin.execute_command("REPLICAOF", "NO", "ONE")  # what comes now it never gets to know
        wait_for(lambda: sum(x.node == "c" for x in before.lines()) > CHAINS // 2, 20, "the primary to be ahead")
        proxy.refuse()
        pair.primary.kill()
        with Fleet(pair.replica.url, tmp_path) as after:
            behind = {thread: [(x.id, x.digest or x.kind) for x in after.log.pages(thread)] for thread in threads}
            assert all(verify(after.log, thread).sound for thread in threads)
            ahead = after.executions()
            proxy.upstream = pair.replica.socket
            proxy.accept()
            after.settled(*threads)
            for thread, entries in behind.items():
                told = [(x.id, x.digest or x.kind) for x in after.log.pages(thread)]
                assert told[: len(entries)] == entries, "the past stays as the replica has it"
            assert max(after.executions().values()) <= 2 and after.executions() - ahead, "what it lacked ran once more"
            assert not any(after.kinds(thread)["task_lost"] for thread in threads)
