"""Nodes that are late, gone, back with nothing, or new: who answers, and who is silent."""

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from airllm.protocol import Deployment, DeviceReport, Download, Query, Reply
from cloud.clients.manager import ClientManager, Stopped
from cloud.grids.local_grid import LocalGrid


class FlakyGrid(LocalGrid):
    """Nodes that can be absent (not listed), hang (listed, silent), crash, or forget all."""

    def __init__(self, app, num_nodes):
        super().__init__(app, num_nodes, {})
        self.absent, self.hanging, self.failing, self.reason = set(), set(), {}, "so it is"

    def get_node_ids(self):
        return [node for node in super().get_node_ids() if node not in self.absent]

    def push_messages(self, messages):
        messages = list(messages)
        ids = super().push_messages(messages)
        for key, message in zip(ids, messages, strict=True):
            node = message.metadata.dst_node_id
            if node in self.hanging | self.absent:
                del self._replies[key]
            elif node in self.failing:
                reply = Message(Error(self.failing[node], self.reason), reply_to=message)
                reply.metadata.__dict__["_src_node_id"] = 1  # the SuperLink's, as in Flower
                self._replies[key] = reply
        return ids

    def forget(self, node):
        self._contexts[node].state.clear()

    def partition(self, node, device):
        self._contexts[node].node_config["partition-id"] = device


@pytest.fixture
def log():
    return []


@pytest.fixture
def make(log):
    """A client manager over nodes that note what they are told."""

    def make(num_devices=2, num_nodes=2, **options):
        app = ClientApp()

        def answer(message, context, is_deployed=False):
            device = context.node_config["partition-id"]
            log.append((message.metadata.message_type, device))
            if is_deployed:
                context.state["held"] = ConfigRecord({"x": 1})
            if "held" not in context.state:
                return Message(RecordDict(), reply_to=message)
            report = DeviceReport(device, 0.5, 0.0, 1, 0.7, 0.5, 0)
            return Message(Reply(report).to_records(), reply_to=message)

        app.query("deploy")(lambda m, c: answer(m, c, is_deployed=True))
        app.query()(answer)
        app.train()(answer)
        grid = FlakyGrid(app, num_nodes)
        for node in range(2 + num_devices, 2 + num_nodes):
            grid.absent.add(node)
        options = {"reply_timeout_s": 0.05, **options}
        return grid, ClientManager(grid, num_devices, Deployment(None), **options)

    return make


def ask(clients, request=None):
    requests = dict.fromkeys(range(clients.num_devices), request or Query())
    return sorted(clients.ask(requests, 0))


def test_all_are_deployed_to_once_and_asked_in_order(make, log):
    _, clients = make()
    assert sorted(clients.assemble(wait_s=0.0)) == [0, 1]
    assert ask(clients) == [0, 1]
    assert log == [("query.deploy", 0), ("query.deploy", 1), ("query", 0), ("query", 1)]


@pytest.mark.parametrize("num_nodes", [1, 3])
def test_another_number_of_nodes_than_devices_is_named(num_nodes, make):
    grid, clients = make(num_nodes=num_nodes)
    grid.absent.clear()
    with pytest.raises(ValueError, match=f"num_devices is 2, but {num_nodes} nodes are connected"):
        clients.assemble(wait_s=0.0)


def test_two_nodes_that_claim_to_be_one_device_are_named(make):
    grid, clients = make(reply_timeout_s=3600.0)
    grid.partition(3, 0)
    message = r"devices \[1\] are missing: nodes \[2, 3\] say that they are devices \[0, 0\] \(give"
    with pytest.raises(ValueError, match=message) as raised:
        clients.assemble(wait_s=0.0)
    assert "3600 s" not in str(raised.value)


def test_a_node_that_says_it_is_a_device_too_many_is_named(make):
    grid, clients = make()
    grid.partition(3, 7)
    with pytest.raises(ValueError, match=r"nodes \[3\] say that they are devices \[7\]"):
        clients.assemble(wait_s=0.0)


def test_what_went_wrong_with_each_node_of_a_deployment_is_told_apart(make):
    grid, clients = make(num_devices=4, num_nodes=4)
    grid.failing, grid.hanging = {3: ErrorCode.NODE_UNAVAILABLE}, {4}
    grid.partition(5, float("nan"))
    with pytest.raises(ValueError, match=r"devices \[1, 2, 3\] are missing: ") as raised:
        clients.assemble(wait_s=0.0)
    for part in (
        "nodes [5] answered without a valid report",
        "node 3 was not reached: so it is (code 5)",
        "nodes [4] did not answer the deployment in 0.05 s (raise runtime.reply_timeout_s",
    ):
        assert part in str(raised.value)


def test_nodes_are_waited_for(make, monkeypatch):
    grid, clients = make()
    grid.absent.add(3)
    monkeypatch.setattr("cloud.clients.manager.time.sleep", lambda seconds: grid.absent.clear())
    assert sorted(clients.assemble(wait_s=60.0)) == [0, 1]


def test_who_hangs_or_is_gone_is_silent_and_the_others_answer(make):
    grid, clients = make()
    clients.assemble(wait_s=0.0)
    grid.hanging = {3}
    assert ask(clients) == [0]
    grid.hanging = set()
    assert ask(clients) == [0, 1]
    grid.absent = {2}
    assert ask(clients) == [1]


def test_a_node_that_flower_calls_unavailable_is_silent_and_a_failed_app_ends_the_run(make):
    grid, clients = make()
    clients.assemble(wait_s=0.0)
    grid.failing = {2: ErrorCode.NODE_UNAVAILABLE}
    assert ask(clients) == [1]
    grid.failing = {2: ErrorCode.CLIENT_APP_RAISED_EXCEPTION}
    message = r"the app of node 2 \(device 0\) failed: so it is \(code 2\)"
    with pytest.raises(RuntimeError, match=message):
        ask(clients)
    grid.reason = None
    with pytest.raises(RuntimeError, match=r"failed: no reason given \(code 2\)"):
        ask(clients)


def test_who_comes_back_with_nothing_is_deployed_to_before_it_is_asked_again(make, log):
    grid, clients = make()
    clients.assemble(wait_s=0.0)
    grid.forget(3)
    log.clear()
    assert ask(clients) == [0, 1]
    assert log == [("query", 0), ("query", 1), ("query.deploy", 1), ("query", 1)]
    grid.forget(3)
    assert ask(clients, Download(b"x")) == [0]  # an update was meant for the state it has lost


def test_a_new_node_takes_the_place_of_one_that_has_left_and_else_is_left_alone(make, log):
    grid, clients = make(num_nodes=3)
    clients.assemble(wait_s=0.0)
    grid.partition(4, 1)
    grid.absent = {3}
    log.clear()
    assert ask(clients) == [0, 1]
    assert log == [("query.deploy", 1), ("query", 0), ("query", 1)]
    assert ask(clients, Download(b"x")) == [0, 1]

    grid, clients = make(num_nodes=3)
    clients.assemble(wait_s=0.0)
    grid.partition(4, 1)
    grid.absent.clear()
    log.clear()
    assert ask(clients) == [0, 1]
    assert ("query.deploy", 1) not in log


def test_a_device_on_another_node_is_sent_no_update_before_it_is_asked(make, log):
    grid, clients = make(num_nodes=3)
    clients.assemble(wait_s=0.0)
    grid.partition(4, 1)
    grid.absent = {3}
    clients.ask({0: Query()}, 0)
    assert log[-2:] == [("query.deploy", 1), ("query", 0)]
    assert not clients.ask({1: Download(b"x")}, 0)
    assert ask(clients) == [0, 1]
    assert ask(clients, Download(b"x")) == [0, 1]


def test_a_run_that_is_asked_to_end_does_not_wait_for_answers(make):
    stops = []
    grid, clients = make(reply_timeout_s=3600.0, is_stopped=lambda: bool(stops))
    clients.assemble(wait_s=0.0)
    grid.hanging = {2, 3}
    stops.append(True)
    with pytest.raises(Stopped):
        ask(clients)


def test_nobody_takes_a_device_whose_node_is_still_there(make):
    grid, clients = make(num_nodes=3)
    clients.assemble(wait_s=0.0)
    grid.partition(4, 0)  # it says that it is device 0, while device 1 has left
    grid.absent = {3}
    assert ask(clients) == [0]
    grid.hanging = {2}
    assert ask(clients) == []
