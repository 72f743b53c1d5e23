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

from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode

from airllm.report import DeviceReport
from cloud.grids.air_grid import AirGrid

logger = logging.getLogger(__name__)

# Flower's codes for an app that did not load, raised or crashed; its other codes, and the air's,
# say that a node was not reached.
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

    answers: dict[int, Message]
    """with a report, by device"""
    blank: list[int]
    """nodes that answered without a report"""
    lost: dict[int, str]
    """nodes that Flower, or the air, did not reach, with the reason"""
    silent: list[int]
    """nodes that had not answered at the deadline"""


class Roster:
    """Speaks to devices; ``deployment`` is what each is given before its first round."""

    def __init__(
        self,
        air: AirGrid,
        num_devices: int,
        deployment: RecordDict,
        *,
        reply_timeout_s: float,
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self.air, self.num_devices = air, num_devices
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
        while len(nodes := sorted(self.air.get_node_ids())) < self.num_devices:
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
        return {device: report_of(reply) for device, reply in heard.answers.items()}

    def _why(self, nodes: list[int], heard: _Heard) -> str:
        """What went wrong with which node of a deployment, and the remedy."""
        claims = {node: self.air.device_of[node] for node in nodes if node in self.air.device_of}
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

    def ask(
        self, message_type: str, contents: Mapping[int, RecordDict], round_index: int
    ) -> dict[int, Message]:
        """Answers by device, to one message each; the silent ones are left out.

        A device that has come back without its state, or on another node, is deployed to anew: it
        answers a query then, and stays silent to an update before that, which was meant for the
        state it has lost. Raises `AppFailed`.
        """
        is_query = message_type == "query"
        if is_query:
            self._welcome(round_index)
        node_of = self._present()
        messages = {
            node: content
            for device, content in contents.items()
            if (node := node_of.get(device)) is not None
            and (is_query or self._heard.get(device, node) == node)
        }
        heard = self._exchange(message_type, messages, round_index)
        answers = heard.answers
        if heard.blank and is_query:
            self._deploy(heard.blank, round_index)
            again = {node: messages[node] for node in heard.blank}
            answers |= self._exchange(message_type, again, round_index).answers
        self._heard |= {device: node for device, node in node_of.items() if device in answers}
        for device in sorted(set(contents) - set(answers)):
            logger.info("device %d did not answer %s", device, message_type)
        return answers

    def _welcome(self, round_index: int) -> None:
        """Deploy to nodes that have joined, where they may stand for a device that has left."""
        nodes, known = set(self.air.get_node_ids()), set(self.air.device_of)
        if (newcomers := sorted(nodes - known)) and len(nodes & known) < self.num_devices:
            self._deploy(newcomers, round_index)

    def _present(self) -> dict[int, int]:
        """Node of each device that is there; of two nodes for one device, the earlier to arrive:
        nobody can take a device while its node is connected."""
        nodes, found = set(self.air.get_node_ids()), dict[int, int]()
        for node, device in self.air.device_of.items():
            if node in nodes:
                found.setdefault(device, node)
        return found

    def _deploy(self, nodes: list[int], round_index: int) -> _Heard:
        contents = dict.fromkeys(nodes, self._deployment)
        return self._exchange("query.deploy", contents, round_index)

    def _exchange(
        self, message_type: str, contents: Mapping[int, RecordDict], round_index: int
    ) -> _Heard:
        """Send a message to each of the nodes, and wait for the answers; raises `AppFailed`."""
        messages = [
            Message(
                content,
                dst_node_id=node,
                message_type=message_type,
                # What comes too late for its round must not be acted on after it.
                ttl=self._reply_timeout_s,
                group_id=str(round_index + 1),
            )
            for node, content in contents.items()
        ]
        waiting = {key for key in self.air.push_messages(messages) if key}
        # An Error of the SuperLink comes from no node: it says only which message it is about.
        node_of = {m.metadata.message_id: m.metadata.dst_node_id for m in messages}
        answers: dict[int, Message] = {}
        blank: list[int] = []
        lost: dict[int, str] = {}
        silent = set(contents)
        deadline, pause_s = time.monotonic() + self._reply_timeout_s, _POLL_S[0]
        while waiting:
            for reply in self.air.pull_messages(waiting):
                waiting.discard(key := reply.metadata.reply_to_message_id)
                node = node_of.get(key, reply.metadata.src_node_id)
                silent.discard(node)
                if not reply.has_content():
                    lost[node] = self._reason(node, reply.error)
                elif "report" in reply.content:
                    answers[report_of(reply).device] = reply
                else:
                    blank.append(node)
            if not waiting or time.monotonic() > deadline:
                break
            self._pause(pause_s)
            pause_s = min(2 * pause_s, _POLL_S[1])
        return _Heard(answers, blank, lost, sorted(silent))

    def _reason(self, node: int, error: Error) -> str:
        """Why a node was not reached; raises `AppFailed` where it was, and its app failed."""
        said = f"{error.reason or 'no reason given'} (code {error.code})"
        device = self.air.device_of.get(node, "unknown")
        if error.code in _FAILED_APP:
            raise AppFailed(f"the app of node {node} (device {device}) failed: {said}")
        logger.info("node %d (device %s): %s", node, device, said)
        return said

    def _pause(self, seconds: float) -> None:
        if self._is_stopped():
            raise Stopped
        time.sleep(seconds)


def report_of(reply: Message) -> DeviceReport:
    """The report that every answer of a device carries."""
    return DeviceReport.from_metrics(dict(reply.content.metric_records["report"]))
