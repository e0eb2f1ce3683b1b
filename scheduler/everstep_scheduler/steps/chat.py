"""Listening to langchain-core's chat models while a node runs. Imported only where `messages` are streamed.

The node need not hand anything on: the callback is found through langchain-core's own context variable, as it is in
LangGraph, and stands in the node's `config` for those who pass it.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler, CallbackManager
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, LLMResult
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import var_child_runnable_config

# A handler of this class makes `model.invoke` stream; langchain-core has no public name for it.
from langchain_core.tracers._streaming import _StreamingCallbackHandler  # pyright: ignore[reportPrivateUsage]

if TYPE_CHECKING:
    from .voice import Voice

NOSTREAM = "nostream"  # LangGraph's tag for a model that is not to be listened to
_STEP_TAGS = ("seq:step", "map:key")


def outermost_ns(metadata: Mapping[str, Any]) -> str:
    """The namespace of the task of the outermost graph that a task is of."""
    return str(metadata["langgraph_checkpoint_ns"]).partition("|")[0]


class ChatHandler(BaseCallbackHandler, _StreamingCallbackHandler):  # type: ignore[type-arg]
    """Tells a voice each token of the models that run within its node, and whole messages where a model has none."""

    run_inline = True

    def __init__(self, voice: Voice) -> None:
        self._voice = voice
        # a manager, for lists of handlers are joined without a look at who is in both
        self.callbacks = CallbackManager(handlers=[self], inheritable_handlers=[self])
        self._models: dict[UUID, dict[str, Any]] = {}

    @contextmanager
    def heard(self, config: Mapping[str, Any]) -> Generator[None]:
        """Inside, models find this handler by themselves."""
        token = var_child_runnable_config.set(cast("RunnableConfig", dict(config)))
        try:
            yield
        finally:
            var_child_runnable_config.reset(token)

    def tap_output_aiter(self, run_id: UUID, output: Any) -> Any:
        return output

    def tap_output_iter(self, run_id: UUID, output: Any) -> Any:
        return output

    def on_chat_model_start(
        self,
        serialized: dict[str, Any],
        messages: Any,
        *,
        run_id: UUID,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if NOSTREAM in (tags or ()):
            return
        own = self._voice.metadata
        told = {**own, **(metadata or {}), "checkpoint_ns": outermost_ns(own)}
        users = [tag for tag in tags or () if not tag.startswith(_STEP_TAGS)]
        self._models[run_id] = {**told, "tags": users} if users else told

    def on_llm_new_token(self, token: Any, *, chunk: Any = None, run_id: UUID, **_: Any) -> None:
        if run_id in self._models and isinstance(chunk, ChatGenerationChunk):
            self._voice.message(chunk.message, self._models[run_id])

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **_: Any) -> None:
        metadata = self._models.pop(run_id, None)
        first = response.generations[0][0] if response.generations and response.generations[0] else None
        if metadata is not None and isinstance(first, ChatGeneration):
            self._voice.message(first.message, metadata, once=True)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        self._models.pop(run_id, None)
