"""Which node stands for which device, who is there, and what they answer in time.

In one process and in a simulation every node is there and answers. In a deployment one may be
killed, come back with nothing, or hang: whoever does not answer by the wall-clock deadline is
silent, and the others go on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from flwr.app import Message, RecordDict
from flwr.common.constant import ErrorCode

from airllm.report import DeviceReport
from cloud.air_grid import AirGrid

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
        reports = self._deploy(nodes, 0)
        self._heard = self._present()
        if missing := sorted(set(range(self.num_devices)) - set(reports)):
            raise ValueError(
                f"devices {missing} did not answer the deployment in {self._reply_timeout_s:g} s; "
                f"give each node its own partition-id from 0 to {self.num_devices - 1}, or raise "
                "runtime.reply_timeout_s where a node takes longer to start"
            )
        return reports

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
        answers, blank = self._exchange(message_type, messages, round_index)
        if blank and is_query:
            self._deploy(blank, round_index)
            again, _ = self._exchange(message_type, {n: messages[n] for n in blank}, round_index)
            answers |= again
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

    def _deploy(self, nodes: list[int], round_index: int) -> dict[int, DeviceReport]:
        contents = dict.fromkeys(nodes, self._deployment)
        answers, _ = self._exchange("query.deploy", contents, round_index)
        return {device: report_of(reply) for device, reply in answers.items()}

    def _exchange(
        self, message_type: str, contents: Mapping[int, RecordDict], round_index: int
    ) -> tuple[dict[int, Message], list[int]]:
        """(answers by device, nodes without a state) of messages to nodes."""
        waiting = {
            key
            for key in self.air.push_messages(
                [
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
            )
            if key
        }
        answers: dict[int, Message] = {}
        blank: list[int] = []
        deadline, pause_s = time.monotonic() + self._reply_timeout_s, _POLL_S[0]
        while waiting:
            for reply in self.air.pull_messages(waiting):
                waiting.discard(reply.metadata.reply_to_message_id)
                if not reply.has_content():
                    if reply.error.code in _FAILED_APP:
                        raise AppFailed(f"the app of a device failed: {reply.error.reason}")
                    logger.info("%s", reply.error.reason)
                elif "report" in reply.content:
                    answers[report_of(reply).device] = reply
                else:
                    blank.append(reply.metadata.src_node_id)
            if not waiting or time.monotonic() > deadline:
                break
            self._pause(pause_s)
            pause_s = min(2 * pause_s, _POLL_S[1])
        return answers, blank

    def _pause(self, seconds: float) -> None:
        if self._is_stopped():
            raise Stopped
        time.sleep(seconds)


def report_of(reply: Message) -> DeviceReport:
    """The report that every answer of a device carries."""
    return DeviceReport.from_metrics(dict(reply.content.metric_records["report"]))
