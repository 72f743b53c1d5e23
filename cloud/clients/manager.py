"""Which node stands for which device, who is there, and what they answer in time.

In one process and in a simulation every node is there and answers. In a deployment one may be
killed, come back with nothing, or hang: whoever does not answer by the wall-clock deadline is
silent, and the others go on.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from airllm.protocol import Deployment, DeviceReport, Download, Grant, Query, Reply, Request

logger = logging.getLogger(__name__)

# Flower's codes for an app that did not load, raised or crashed; its other codes say that a node
# was not reached.
_FAILED_APP = (
    ErrorCode.UNKNOWN,
    ErrorCode.LOAD_CLIENT_APP_EXCEPTION,
    ErrorCode.CLIENT_APP_RAISED_EXCEPTION,
    ErrorCode.MOD_FAILED_PRECONDITION,
    ErrorCode.INVALID_FAB,
    ErrorCode.CLIENT_APP_CRASHED,
)
_POLL_S = (0.01, 0.5)  # from, to: a simulated node answers at once, a process takes seconds


class Stopped(Exception):
    """The run was asked to end while it waited for answers."""


class AppFailed(RuntimeError):
    """The app of a device raised an exception, or could not be loaded."""


class _Heard(NamedTuple):
    """What came of messages to nodes."""

    answers: dict[int, Reply]
    """by device"""
    blank: list[int]
    """nodes that answered without a proper report"""
    lost: dict[int, str]
    """nodes that Flower did not reach, with the reason"""
    silent: list[int]
    """nodes that had not answered at the deadline"""


class ClientManager:
    """Speaks to devices; ``deployment`` is what each is given before its first round."""

    def __init__(
        self,
        grid: Grid,
        num_devices: int,
        deployment: Deployment,
        *,
        reply_timeout_s: float,
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self.grid, self.num_devices = grid, num_devices
        self.device_of: dict[int, int] = {}
        """device of each node, once its first report has come"""
        self._deployment, self._reply_timeout_s = deployment, reply_timeout_s
        self._is_stopped = is_stopped
        self._heard: dict[int, int] = {}
        """node that answered for each device last"""

    def assemble(self, *, wait_s: float) -> dict[int, DeviceReport]:
        """Wait until as many nodes are there as there are devices, and deploy to them.

        Raises ValueError where nodes or devices are missing, or too many.
        """
        deadline = time.monotonic() + wait_s
        # Nodes of a deployment come up one by one; those of a simulation are there at once.
        while len(nodes := sorted(self.grid.get_node_ids())) < self.num_devices:
            if time.monotonic() > deadline:
                break
            self._pause(0.5)
        if len(nodes) != self.num_devices:
            raise ValueError(
                f"num_devices is {self.num_devices}, but {len(nodes)} nodes are connected; make "
                f"them equal (in a simulation: --federation-config "
                f"'num-supernodes={self.num_devices}')"
            )
        heard = self._deploy(nodes, 0)
        self._heard = self._present()
        if missing := sorted(set(range(self.num_devices)) - set(heard.answers)):
            raise ValueError(f"devices {missing} are missing: {self._why(nodes, heard)}")
        return {device: reply.report for device, reply in heard.answers.items()}

    def _why(self, nodes: list[int], heard: _Heard) -> str:
        """What went wrong with which node of a deployment, and the remedy."""
        claims = {node: self.device_of[node] for node in nodes if node in self.device_of}
        count, proper = Counter(claims.values()), range(self.num_devices)
        wrong = {n: d for n, d in claims.items() if count[d] > 1 or d not in proper}
        said = []
        if wrong:
            said.append(
                f"nodes {list(wrong)} say that they are devices {list(wrong.values())} (give each "
                f"its own partition-id from 0 to {self.num_devices - 1})"
            )
        if heard.blank:
            said.append(
                f"nodes {heard.blank} answered without a valid report (the log says what is wrong "
                f"with it; run the same version of the app on them)"
            )
        for node, why in heard.lost.items():
            said.append(f"node {node} was not reached: {why} (see that its SuperNode is up)")
        if heard.silent:
            said.append(
                f"nodes {heard.silent} did not answer the deployment in "
                f"{self._reply_timeout_s:g} s (raise runtime.reply_timeout_s where a node takes "
                f"longer to start)"
            )
        return "; ".join(said)

    def ask(self, requests: Mapping[int, Request], round_index: int) -> dict[int, Reply]:
        """Answers by device, to one request each, all of a kind; the silent ones are left out.

        A device that has come back without its state, or on another node, is deployed to anew: it
        answers a query then, and stays silent to an update before that, which was meant for the
        state it has lost. Raises `AppFailed`.
        """
        if not requests:
            return {}
        is_query = all(isinstance(request, Query) for request in requests.values())
        if is_query:
            self._welcome(round_index)
        node_of = self._present()
        asked = {
            node: request
            for device, request in requests.items()
            if (node := node_of.get(device)) is not None
            and (is_query or self._heard.get(device, node) == node)
        }
        heard = self._exchange(asked, round_index)
        answers = heard.answers
        if heard.blank and is_query:
            self._deploy(heard.blank, round_index)
            again = {node: asked[node] for node in heard.blank}
            answers |= self._exchange(again, round_index).answers
        self._heard |= {device: node for device, node in node_of.items() if device in answers}
        for device in sorted(set(requests) - set(answers)):
            logger.info("device %d did not answer %s", device, requests[device].kind)
        return answers

    def _welcome(self, round_index: int) -> None:
        """Deploy to nodes that have joined, where they may stand for a device that has left."""
        nodes, known = set(self.grid.get_node_ids()), set(self.device_of)
        if (newcomers := sorted(nodes - known)) and len(nodes & known) < self.num_devices:
            self._deploy(newcomers, round_index)

    def _present(self) -> dict[int, int]:
        """Node of each device that is there; of two nodes for one device, the earlier to arrive:
        nobody can take a device while its node is connected."""
        nodes, found = set(self.grid.get_node_ids()), dict[int, int]()
        for node, device in self.device_of.items():
            if node in nodes:
                found.setdefault(device, node)
        return found

    def _deploy(self, nodes: list[int], round_index: int) -> _Heard:
        return self._exchange(dict.fromkeys(nodes, self._deployment), round_index)

    def _exchange(self, requests: Mapping[int, Request], round_index: int) -> _Heard:
        """Send a request to each of the nodes, and wait for the answers; raises `AppFailed`."""
        messages = [
            Message(
                request.to_records(),
                dst_node_id=node,
                message_type=request.kind,
                # What comes too late for its round must not be acted on after it.
                ttl=self._reply_timeout_s,
                group_id=str(round_index + 1),
            )
            for node, request in requests.items()
        ]
        waiting = {key for key in self.grid.push_messages(messages) if key}
        # An Error of the SuperLink comes from no node: it says only which message it is about.
        node_of = {m.metadata.message_id: m.metadata.dst_node_id for m in messages}
        answers: dict[int, Reply] = {}
        blank: list[int] = []
        lost: dict[int, str] = {}
        silent = set(requests)
        deadline, pause_s = time.monotonic() + self._reply_timeout_s, _POLL_S[0]
        while waiting:
            for message in self.grid.pull_messages(waiting):
                waiting.discard(key := message.metadata.reply_to_message_id)
                node = node_of.get(key, message.metadata.src_node_id)
                silent.discard(node)
                if not message.has_content():
                    lost[node] = self._reason(node, message.error)
                elif (reply := self._opened(message, requests[node])) is not None:
                    answers[reply.report.device] = reply
                else:
                    blank.append(node)
            if not waiting or time.monotonic() > deadline:
                break
            self._pause(pause_s)
            pause_s = min(2 * pause_s, _POLL_S[1])
        return _Heard(answers, blank, lost, sorted(silent))

    def _opened(self, message: Message, request: Request) -> Reply | None:
        """A proper answer to a request, of the device that the node has always been."""
        node = message.metadata.src_node_id
        try:
            reply = Reply.of_records(message.content)
            if reply is not None:
                _check(reply, request)
        except ValueError as error:
            logger.warning("answer of node %d left out: %s", node, error)
            return None
        if reply is None:
            return None
        known = self.device_of.setdefault(node, reply.report.device)
        if reply.report.device != known:
            logger.warning(
                "node of device %d says it is device %d: left out", known, reply.report.device
            )
            return None
        return reply

    def _reason(self, node: int, error: Error) -> str:
        """Why a node was not reached; raises `AppFailed` where it was, and its app failed."""
        said = f"{error.reason or 'no reason given'} (code {error.code})"
        device = self.device_of.get(node, "unknown")
        if error.code in _FAILED_APP:
            raise AppFailed(f"the app of node {node} (device {device}) failed: {said}")
        logger.info("node %d (device %s): %s", node, device, said)
        return said

    def _pause(self, seconds: float) -> None:
        if self._is_stopped():
            raise Stopped
        time.sleep(seconds)


def _check(reply: Reply, request: Request) -> None:
    """Raise ValueError for an answer with what was not asked for."""
    is_order = isinstance(request, Download) and request.order is not None
    if reply.training is not None and not is_order:
        raise ValueError("training was not asked for")
    if reply.payload is not None and not isinstance(request, Grant):
        raise ValueError("an update was not asked for")
