"""`StateGraph`: the builder. Names, arguments and results are LangGraph's; a mistake is told while building.

It collects nodes, edges and routers, checks them, and makes a `GraphSpec`. `compile` adds what runs it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, Self, get_args, get_origin

from everstep_checkpoint.errors import GraphError

from .callables import INJECTED_INTO_HANDLERS, carrier, first_schema, form_of, hints, is_async
from .channels import HIDDEN, Channel, channel_of
from .durability import COMMIT, durability_of
from .handling import DEFAULT, PREFIX, handler_name
from .isolation import address_of, check_types
from .limits import Limit, check_named, limit_of
from .options import Cache, CachePolicy, Options, Timeout, queue_name
from .results import command_ends
from .retry import RetryPolicy
from .runtime import END, RESERVED, START
from .schema import Schema, did_you_mean
from .spec import UNNAMED, Branch, GraphSpec, Join, NamedType, NodeSpec, registry_of
from .subgraphs import compiled_spec, types_in
from .theirs import theirs

if TYPE_CHECKING:
    from ..inline.compiled import CompiledGraph

Node = Callable[..., Any]
Router = Callable[..., Any] | Callable[..., Awaitable[Any]]
PathMap = Mapping[Hashable, str] | Sequence[str]
Destinations = Mapping[str, str] | Sequence[str] | None
Breakpoints = Sequence[str] | Literal["*"] | None

NAME_MAX = 200


class StateGraph:
    """A graph whose nodes read and write a shared state. Build, then `compile()`.

    `state_schema` is a TypedDict, dataclass or pydantic model: each key is a channel, with a reducer where it
    is `Annotated[type, reducer]`. `input_schema` and `output_schema` narrow what goes in and comes out;
    `context_schema` is the type of `runtime.context`.
    """

    def __init__(
        self,
        state_schema: type[Any],
        context_schema: type[Any] | None = None,
        *,
        input_schema: type[Any] | None = None,
        output_schema: type[Any] | None = None,
    ) -> None:
        self._schemas: dict[type[Any], Schema] = {}
        self._channels: dict[str, Channel] = {}
        self._managed: set[str] = set()
        self._nodes: dict[str, NodeSpec] = {}
        self._edges: dict[tuple[str, str], None] = {}
        self._branches: dict[tuple[str, str], Branch] = {}
        self._joins: dict[Join, None] = {}
        self._handlers: dict[str, NodeSpec] = {}
        self._options: dict[str, Options] = {}
        self._defaults = Options()
        self._types: list[NamedType] = []
        self._context_schema = context_schema
        self._state = self._add_schema(state_schema)
        self._input = self._add_outer(input_schema or state_schema)
        self._output = self._add_outer(output_schema or state_schema)

    # -- nodes

    def add_node(
        self,
        node: str | Node | CompiledGraph,
        action: Node | CompiledGraph | None = None,
        *,
        defer: bool = False,
        metadata: Mapping[str, Any] | None = None,
        input_schema: type[Any] | None = None,
        retry_policy: RetryPolicy | Sequence[RetryPolicy] | None = None,
        cache_policy: CachePolicy | None = None,
        error_handler: Node | None = None,
        timeout: Timeout = None,
        destinations: Mapping[str, str] | Sequence[str] | None = None,
        queue: str | None = None,
        isolate: bool = False,
        limit: int | Limit | None = None,
    ) -> Self:
        """Adds a node: a sync or async function of (state), (state, config), (state, runtime) or both.

        The name is the function's if not given. The node sees the state as `input_schema`, else as the schema
        that annotates its first parameter, else as the graph's.

        `defer`          it waits until no other node would run
        `retry_policy`   the first that matches decides
        `cache_policy`   its outcome is kept, and reused for the same input, if the graph has a cache
        `error_handler`  runs when the node has failed for good, and speaks for it: (state, error: NodeError), and so on
        `timeout`        seconds for one attempt, also of a sync node, or a TimeoutPolicy
        `queue`          where its jobs go
        `isolate`        each attempt of a sync node runs in a process of its own, which is killed when it is over its
                         time or stopped; the function is one that another process can import
        `limit`          how many of its tasks may run at once over the whole fleet, or a Limit: also how many may begin
                         within a time, or both for each `limit_key`
        `destinations`   where its Commands may go, if `-> Command[Literal[...]]` does not say so; a dict gives labels

        A compiled graph is a node, too: it runs on a thread of its own, as jobs of its own, and the keys that both
        graphs have are its input and its output. It has no timeout: its nodes have.
        """
        inner = compiled_spec(node if action is None else action)
        if inner is not None:
            name = node if isinstance(node, str) else inner[0].name
            self._check_name(name)
            if timeout is not None:
                raise GraphError("A graph as a node has no timeout", node=name, fix="Give timeouts to its nodes.")
            if isolate:
                raise GraphError("A graph as a node can't be isolated", node=name, fix="Isolate nodes of it.")
            _check_limits(name, *inner, limit)
            made = self._graph_node(name, *inner, input_schema, destinations)
        else:
            name, fn = _named(node, action)
            self._check_name(name)
            made = self._function_node(name, fn, input_schema, destinations)
            made = _isolated(made) if isolate else made
        self._nodes[name] = replace(
            made, queue=queue_name(name, queue), metadata=dict(metadata or {}), defer=defer, limit=limit_of(name, limit)
        )
        handler = self._handled(handler_name(name), error_handler, self._nodes[name]) if error_handler else None
        self._options[name] = Options.of(name, retry_policy, timeout, cache_policy, handler)
        return self

    def _handled(self, name: str, fn: Node, node: NodeSpec | None) -> str:
        """Keeps an error handler, of one node or (None) of all. It sees what the node saw."""
        if not callable(fn):
            raise GraphError(f"The error handler {fn!r} is no function", fix="Pass one: (state, error: NodeError).")
        self._handlers[name] = NodeSpec(
            name=name,
            fn=fn,
            is_async=is_async(fn),
            queue=node.queue if node is not None else None,
            metadata={},
            input_schema=node.input_schema if node is not None else self._state,
            form=form_of(fn, f"The error handler {name!r}", INJECTED_INTO_HANDLERS),
            ends=command_ends(carrier(fn), hints(fn), None),
        )
        return name

    def add_type(self, cls: type[Any], *, name: str | None = None, aliases: Sequence[str] = ()) -> Self:
        """Lets values be of a class that no annotation of the graph names, or that was renamed.

        `cls` is a pydantic model, dataclass, Enum or NamedTuple. Classes that the annotations of state, input, output,
        context and nodes reach need not be added. `name`: what logs call it (default: the class's own name); `aliases`:
        what older logs call it. Raises GraphError for another kind of class, or a name that is taken.
        """
        named = NamedType(cls, (name or cls.__name__, *aliases))
        registry_of((), [*self._types, named])
        self._types.append(named)
        return self

    def set_node_defaults(
        self,
        *,
        retry_policy: RetryPolicy | Sequence[RetryPolicy] | None = None,
        cache_policy: CachePolicy | None = None,
        error_handler: Node | None = None,
        timeout: Timeout = None,
    ) -> Self:
        """Options of all nodes that say nothing of their own, whether they are added before or after. They count when
        the graph is compiled. Each call adds to the last one."""
        handler = self._handled(DEFAULT, error_handler, None) if error_handler else None
        said = Options.of("the defaults", retry_policy, timeout, cache_policy, handler)
        self._defaults = said.over(self._defaults)
        return self

    def _function_node(
        self, name: str, fn: Node, input_schema: type[Any] | None, destinations: Destinations
    ) -> NodeSpec:
        seen_as = input_schema or first_schema(fn)
        return NodeSpec(
            name=name,
            fn=fn,
            is_async=is_async(fn),
            queue=None,
            metadata={},
            input_schema=self._add_schema(seen_as) if seen_as else self._state,
            form=form_of(fn, f"The node {name!r}"),
            ends=command_ends(carrier(fn), hints(fn), destinations),
        )

    def _graph_node(
        self,
        name: str,
        graph: GraphSpec,
        keeps: bool | None,
        input_schema: type[Any] | None,
        destinations: Destinations,
    ) -> NodeSpec:
        return NodeSpec(
            name=name,
            fn=partial(_in_memory, graph),
            is_async=False,
            queue=None,
            metadata={},
            input_schema=self._add_schema(input_schema) if input_schema else self._state,
            form=("config",) if keeps is False else (),
            ends=command_ends(None, {}, destinations) if destinations is not None else {},
            graph=graph,
            keeps=keeps,
        )

    def add_sequence(self, nodes: Sequence[Node | CompiledGraph | tuple[str, Node | CompiledGraph]]) -> Self:
        """Adds nodes, given as functions, graphs or (name, either), with an edge from each to the next."""
        if not nodes:
            raise GraphError("A sequence needs at least one node", fix="Pass functions or (name, function) pairs.")
        names: list[str] = []
        for each in nodes:
            name, fn = _pair(each)
            self.add_node(name, fn)
            names.append(name)
        for before, after in pairwise(names):
            self.add_edge(before, after)
        return self

    # -- edges

    def add_edge(self, start_key: str | Sequence[str], end_key: str) -> Self:
        """After `start_key`, run `end_key`. With a list of starts: once all of them have run (a join)."""
        starts = [start_key] if isinstance(start_key, str) else list(start_key)
        if END in starts:
            raise GraphError(f"END can't be the start of an edge (to {end_key!r})", fix="Swap its ends.")
        if end_key == START:
            raise GraphError(f"START can't be the end of an edge (from {starts})", fix="Swap its ends.")
        if isinstance(start_key, str):
            self._edges[start_key, end_key] = None
        else:
            self._joins[_join(starts, end_key)] = None
        return self

    def add_conditional_edges(self, source: str, path: Router, path_map: PathMap | None = None) -> Self:
        """After `source`, ask the router `path` where to go: a node's name, END, a Send, or a list of these.

        `path_map` maps its answers to nodes, or lists the nodes; without it the answers are nodes, and a
        `Literal[...]` return annotation lists them. The router sees the state with the writes of `source`.
        """
        if not callable(path):
            raise GraphError(f"The router after {source!r} is no function", node=source, fix=f"Got {path!r}.")
        name = _router_name(path)
        if (source, name) in self._branches:
            raise GraphError(
                f"The node {source!r} has a router {name!r} already",
                node=source,
                fix="Give the second one a name of its own (def instead of lambda).",
            )
        seen_as = first_schema(path)
        self._branches[source, name] = Branch(
            source=source,
            name=name,
            fn=path,
            is_async=is_async(path),
            form=form_of(path, f"The router {name!r} after {source!r}"),
            ends=_ends(path, path_map),
            input_schema=self._add_schema(seen_as) if seen_as else None,
        )
        return self

    def set_entry_point(self, key: str) -> Self:
        """The same as `add_edge(START, key)`."""
        return self.add_edge(START, key)

    def set_conditional_entry_point(self, path: Router, path_map: PathMap | None = None) -> Self:
        """The same as `add_conditional_edges(START, path, path_map)`."""
        return self.add_conditional_edges(START, path, path_map)

    def set_finish_point(self, key: str) -> Self:
        """The same as `add_edge(key, END)`."""
        return self.add_edge(key, END)

    # -- the whole

    def validate(self) -> Self:
        """Raises GraphError if an edge has an unknown end, nothing begins, or a node can't be reached."""
        for where, start, end in self._ends_of_edges():
            self._check_known(start, where, START)
            self._check_known(end, where, END)
        if not any(start == START for _, start, _ in self._ends_of_edges()):
            raise GraphError(
                "The graph has no entry: nothing follows START",
                fix=f"add_edge(START, {next(iter(self._nodes), 'a node')!r})",
            )
        self._check_reachable()
        return self

    def spec(
        self,
        name: str | None = None,
        interrupt_before: Breakpoints = None,
        interrupt_after: Breakpoints = None,
    ) -> GraphSpec:
        """The graph, checked, as the pure value that plans and runs are made from."""
        self.validate()
        made = self._spec(name, interrupt_before, interrupt_after)
        check_types([each.name for each in self._nodes.values() if each.isolate], made.registry)
        check_named(made.name, {(each.name, x): limit for each in made.family for x, limit in each.limits.items()})
        return made

    def _spec(self, name: str | None, interrupt_before: Breakpoints, interrupt_after: Breakpoints) -> GraphSpec:
        nested = [each.graph for each in self._nodes.values() if each.graph is not None]
        types = tuple(dict.fromkeys([*self._types, *(named for graph in nested for named in graph.types)]))
        return GraphSpec(
            name=_graph_name(name),
            nodes={name: self._whole(node) for name, node in self._nodes.items()},
            edges=tuple(sorted(self._edges)),
            branches=tuple(self._branches.values()),
            joins=tuple(sorted(self._joins, key=lambda join: join.channel)),
            channels=dict(self._channels),
            state_schema=self._state,
            input_schema=self._input,
            output_schema=self._output,
            context_schema=self._context_schema,
            managed=frozenset(self._managed),
            handlers={name: self._whole(each) for name, each in self._handlers.items()},
            registry=registry_of(
                [*self._schemas, self._context_schema, *types_in(x.graph for x in self._nodes.values())], types
            ),
            types=types,
            interrupt_before=self._breakpoints(interrupt_before, "interrupt_before"),
            interrupt_after=self._breakpoints(interrupt_after, "interrupt_after"),
        )

    def compile(
        self,
        checkpointer: Any = None,
        *,
        interrupt_before: Breakpoints = None,
        interrupt_after: Breakpoints = None,
        cache: Cache | None = None,
        name: str | None = None,
        durability: str = COMMIT,
    ) -> CompiledGraph:
        """A graph that runs. `checkpointer` keeps its threads; `name` is the graph's, and its queue's. A graph that is
        to be a node of another one is kept by that one's; for it True says that its state lasts over calls, False that
        it is kept nowhere.

        `interrupt_before`, `interrupt_after`: nodes at which each run stops, "*" for all; `invoke(None, config)` goes
        on. `cache` keeps outcomes of nodes with a cache policy, of inline runs; workers keep them in Redis.
        `durability`: what its runs are promised where the call says nothing, as in `invoke`. A graph that is a node, or
        that a node calls, has its caller's. Raises GraphError, InvalidInput.
        """
        from ..inline.compiled import CompiledGraph  # late: what runs graphs imports what builds them

        keeps = checkpointer if isinstance(checkpointer, bool) else None
        checkpointer = None if keeps is not None else checkpointer
        if checkpointer is not None and not hasattr(checkpointer, "moves"):
            raise GraphError(
                f"{theirs(checkpointer) or repr(checkpointer)} is no checkpointer of everstep",
                fix="from everstep import InMemorySaver, RedisSaver: InMemorySaver(), or RedisSaver('redis://127.0.0.1:6379/0')",
            )
        spec = replace(self.spec(name, interrupt_before, interrupt_after), durability=durability_of(durability))
        return CompiledGraph(spec, checkpointer, cache, keeps)

    # -- inside

    def _breakpoints(self, given: Breakpoints, what: str) -> tuple[str, ...]:
        names = () if given is None else ("*",) if given == "*" else tuple(given)
        for name in names:
            if name != "*":
                self._check_known(name, what, "*")
        return names

    def _whole(self, node: NodeSpec) -> NodeSpec:
        """With its options. An error handler has those defaults that make sense for it: no cache, no handler."""
        if node.name in self._handlers:
            return replace(node, retry=self._defaults.retry or (), timeout=self._defaults.timeout)
        said = self._options[node.name].over(self._defaults)
        return replace(node, retry=said.retry or (), timeout=said.timeout, cache=said.cache, handler=said.handler)

    def _add_schema(self, cls: type[Any]) -> Schema:
        if cls not in self._schemas:
            schema = Schema(cls)
            for field in schema.fields.values():
                self._add_channel(channel_of(field), cls)
            self._managed |= schema.managed.keys()
            self._schemas[cls] = schema
            self._check_managed(cls)
        return self._schemas[cls]

    def _add_outer(self, cls: type[Any]) -> Schema:
        """An input or output schema: what goes in or comes out is stored."""
        schema = self._add_schema(cls)
        if schema.managed and schema is not self._state:
            raise GraphError(
                f"{cls.__name__} has the managed value {min(schema.managed)!r}, but goes into the graph or comes out",
                fix="Managed values belong to the state's schema, or to a node's own.",
            )
        return schema

    def _add_channel(self, channel: Channel, cls: type[Any]) -> None:
        """A key of several schemas is one channel. Only one of them needs to name the reducer: the first."""
        if channel.name.startswith(HIDDEN):
            prefix = channel.name.partition(":")[0]
            raise GraphError(f"The key {channel.name!r} is reserved", fix=f"Keys can't begin with '{prefix}:'.")
        known = self._channels.setdefault(channel.name, channel)
        if not channel.is_plain and not known.same_as(channel):
            raise GraphError(
                f"{cls.__name__} gives the key {channel.name!r} another reducer than an earlier schema",
                fix=f"Use one reducer for the key: {known.reducer_name or 'none'} or {channel.reducer_name}.",
            )

    def _check_managed(self, cls: type[Any]) -> None:
        if both := sorted(self._managed & self._channels.keys()):
            raise GraphError(
                f"{cls.__name__} has the key {both[0]!r}, which is a managed value in one schema and stored in another",
                fix="Annotate it as RemainingSteps or IsLastStep everywhere, or nowhere.",
            )

    def _check_name(self, name: str) -> None:
        if not name or len(name) > NAME_MAX or "|" in name or ":" in name or not name.isprintable():
            raise GraphError(
                f"{name!r} can't be a node's name",
                fix=f"1 to {NAME_MAX} printable characters without '|' and ':'.",
            )
        if name in RESERVED or name == DEFAULT or name.startswith(PREFIX):
            raise GraphError(f"The node name {name!r} is reserved", fix="Use START and END in edges only.")
        if name in self._nodes:
            raise GraphError(
                f"There is a node {name!r} already",
                node=name,
                fix='Name this one: add_node("other", function).',
            )

    def _ends_of_edges(self) -> Iterable[tuple[str, str, str]]:
        """(what it is, start, end) of all edges. A router that can say anything leads to END here."""
        for start, end in self._edges:
            yield f"The edge from {start!r} to {end!r}", start, end
        for join in self._joins:
            for start in join.starts:
                yield f"The edge from {list(join.starts)} to {join.target!r}", start, join.target
        for (source, name), branch in self._branches.items():
            for end in branch.ends.values() if branch.ends is not None else [END]:
                yield f"The router {name!r} after {source!r}", source, end
        for name, node in self._nodes.items():
            for end in (*(node.ends or ()), *(self._handler_ends(name) or ())):
                yield f"The node {name!r}, with a Command,", name, end

    def _handler_ends(self, node: str) -> Mapping[str, str] | None:
        """Where a node's error handler may go. None: anywhere."""
        handler = self._options[node].over(self._defaults).handler
        return {} if handler is None else self._handlers[handler].ends

    def _check_known(self, name: str, where: str, allowed: str) -> None:
        if name not in self._nodes and name != allowed:
            raise GraphError(f"{where} names {name!r}, which is no node", fix=did_you_mean(name, self._nodes))

    def _check_reachable(self) -> None:
        follows: dict[str, set[str]] = {}
        for _, start, end in self._ends_of_edges():
            follows.setdefault(start, set()).add(end)
        free = [source for (source, _), branch in self._branches.items() if branch.ends is None]
        anywhere = [name for name, node in self._nodes.items() if node.ends is None or self._handler_ends(name) is None]
        for source in (*free, *anywhere):
            follows.setdefault(source, set()).update(self._nodes)
        reached, waiting = {START}, [START]
        while waiting:
            fresh = follows.get(waiting.pop(), set()) - reached
            reached |= fresh
            waiting.extend(fresh)
        if lost := [name for name in self._nodes if name not in reached]:
            raise GraphError(
                f"No path from START reaches the node {lost[0]!r}",
                node=lost[0],
                fix="Add an edge to it, or name it in the path_map of the router that sends to it.",
            )


def _in_memory(graph: GraphSpec, state: Any, config: Any) -> Any:
    """A graph with checkpointer=False: it runs within the attempt."""
    from ..inline.compiled import run_in_memory

    return run_in_memory(graph, state, config)


def _isolated(node: NodeSpec) -> NodeSpec:
    """The node, run in a process of its own. Raises GraphError for one that can't be."""
    if node.is_async:
        raise GraphError(
            "An async node can't be isolated", node=node.name, fix="Make it sync (def); an async one can be cancelled."
        )
    address_of(node.name, node.fn)
    return replace(node, isolate=True)


def _named(node: str | Node | CompiledGraph, action: Node | CompiledGraph | None) -> tuple[str, Node]:
    """Name and function from `add_node`'s two ways to say them."""
    fn = action if isinstance(node, str) else node
    if not callable(fn):
        raise GraphError(
            f"The node {node!r} has no function to run",
            fix='Pass one, as in add_node("name", function); wrap other objects in a lambda.',
        )
    return (node if isinstance(node, str) else str(getattr(fn, "__name__", type(fn).__name__))), fn


def _pair(node: Any) -> tuple[str, Any]:
    """Name and function, or graph, of one of a sequence's nodes."""
    if (inner := compiled_spec(node)) is not None:
        return inner[0].name, node
    return node if isinstance(node, tuple) else _named(node, None)  # pyright: ignore[reportUnknownVariableType]


def _join(starts: Sequence[str], target: str) -> Join:
    if not starts or START in starts:
        raise GraphError(f"A join waits for nodes, not for {list(starts)}", fix="Name the nodes to wait for.")
    if odd := [name for name in starts if "+" in name]:
        raise GraphError(f"The node {odd[0]!r} can't be waited for", node=odd[0], fix="Rename it without '+'.")
    return Join(tuple(sorted(set(starts))), target)


def _router_name(path: Router) -> str:
    """The function's name; 'condition' for what has none (LangGraph's word)."""
    name = str(getattr(path, "__name__", "<lambda>"))
    return "condition" if name == "<lambda>" else name


def _ends(path: Router, path_map: PathMap | None) -> dict[Any, str] | None:
    """What the router may say -> node. None: anything."""
    if isinstance(path_map, Mapping):
        return dict(path_map)
    if path_map is not None:
        return {name: name for name in path_map}
    said = hints(path).get("return")
    return {name: name for name in get_args(said)} if get_origin(said) is Literal else None


def _check_limits(name: str, graph: GraphSpec, keeps: bool | None, limit: int | Limit | None) -> None:
    """A graph as a node is held to the limits of its own nodes, where those can be counted. Raises GraphError."""
    if limit is not None:
        raise GraphError("A graph as a node has no limit", node=name, fix="Give limits to its nodes.")
    limited = [each.name for each in graph.family if each.limits]
    if keeps is False and limited:
        raise GraphError(
            f"The graph {limited[0]!r} has limits, and with checkpointer=False nobody else sees what it runs",
            node=name,
            fix="compile() it without checkpointer=False.",
        )


def _graph_name(name: str | None) -> str:
    if name is None:
        return UNNAMED
    if not name or not name.isprintable() or len(name) > NAME_MAX or name.startswith("|"):
        raise GraphError(
            f"{name!r} can't be a graph's name", fix=f"1 to {NAME_MAX} printable characters, the first of them no '|'."
        )
    queue_name("", name)  # it is the queue of its nodes, too
    return name
