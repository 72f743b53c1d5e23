"""Flower's Grid in one process: the same ClientApp, no server, no Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

AnswerTogether = Callable[[Sequence[tuple[Message, Context]]], Sequence[Message]]
"""replies to messages, each with its node's context, in their order"""


class LocalGrid(Grid):
    """Runs a ClientApp for each node, one after another or together, each with a lasting Context.

    Nodes get copies of what they are sent, as over a network. Flower lets a Message be made only
    inside a task; where there is none, this file alone sets that identity (flwr 1.41 has no public
    way, so the version is pinned).
    """

    _RUN_ID, _SERVER_NODE = 1, 1

    def __init__(
        self,
        app: ClientApp,
        num_nodes: int,
        run_config: Mapping[str, bool | float | int | str],
        *,
        answer_together: AnswerTogether | None = None,
    ) -> None:
        """``answer_together``, where there is one, answers all messages of a push at once, in the
        place of ``app``."""
        if TaskIdentity._run_id is None:
            TaskIdentity.task_id = TaskIdentity.run_id = self._RUN_ID
            TaskIdentity.node_id = self._SERVER_NODE
        self._app, self._answer_together = app, answer_together
        self._contexts = {
            node: Context(
                run_id=self._RUN_ID,
                node_id=node,
                node_config={"partition-id": device, "num-partitions": num_nodes},
                state=RecordDict(),
                run_config=dict(run_config),
            )
            for device, node in enumerate(range(2, 2 + num_nodes))
        }
        self._replies: dict[str, Message] = {}
        self._num_messages = 0

    @property
    def is_stacked(self) -> bool:
        """Whether all messages of a push are answered together."""
        return self._answer_together is not None

    def set_run(self, run: Run) -> None:
        raise NotImplementedError("a LocalGrid has one run, its own")

    @property
    def run(self) -> Run:
        return Run.create_empty(self._RUN_ID)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        pushed: dict[str, Message] = {}
        for message in messages:
            key = f"local-{self._num_messages}"
            self._num_messages += 1
            message.metadata.__dict__["_message_id"] = key  # what its reply refers to
            pushed[key] = deepcopy(message)
        known = {k: m for k, m in pushed.items() if m.metadata.dst_node_id in self._contexts}
        if self._answer_together is None:
            replies = [self._answer(message) for message in known.values()]
        else:
            asked = [(m, self._contexts[m.metadata.dst_node_id]) for m in known.values()]
            replies = list(self._answer_together(asked))
        self._replies |= dict(zip(known, map(deepcopy, replies), strict=True))
        for key in pushed.keys() - known.keys():
            error = Error(ErrorCode.NODE_UNAVAILABLE, "there is no such node")
            self._replies[key] = Message(error, reply_to=pushed[key])
        return list(pushed)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(key) for key in message_ids if key in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))

    def state_dict(self) -> dict[str, Any]:
        """What every node keeps in its Context, as tensors and plain values."""
        return {
            str(node): {name: _plain(record) for name, record in context.state.items()}
            for node, context in self._contexts.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        for node, context in self._contexts.items():
            records = {name: _record(plain) for name, plain in state[str(node)].items()}
            context.state = RecordDict(records)

    def _answer(self, message: Message) -> Message:
        context = self._contexts[message.metadata.dst_node_id]
        server_node = TaskIdentity.node_id
        TaskIdentity.node_id = message.metadata.dst_node_id
        try:
            # An exception in an app is a bug here, not a lost node: it ends the run.
            return self._app(message, context)
        finally:
            TaskIdentity.node_id = server_node


def _plain(record: Any) -> dict[str, Any]:
    if isinstance(record, ArrayRecord):
        arrays = {key: np.array(array.numpy()) for key, array in record.items()}
        return {"arrays": {key: torch.from_numpy(array) for key, array in arrays.items()}}
    kind = "metrics" if isinstance(record, MetricRecord) else "values"
    return {kind: dict(record.items())}


def _record(plain: dict[str, Any]) -> Any:
    ((kind, inner),) = plain.items()
    if kind == "arrays":
        return ArrayRecord({key: Array(tensor.numpy()) for key, tensor in inner.items()})
    return MetricRecord(inner) if kind == "metrics" else ConfigRecord(inner)
