"""What nodes of one process may do to what they are sent."""

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.supercore.task_identity import TaskIdentity

from cloud.grids.local_grid import LocalGrid


def test_a_node_gets_a_copy_and_so_does_the_server():
    """As over a network: what one changes in its message or its reply, nobody else sees."""
    app, rates, kept = ClientApp(), [], []

    @app.train()
    def train(message, context):
        config = message.content["config"]
        rates.append(config["rate"])
        config["rate"] /= 2
        message.content.pop("arrays")
        reply = Message(RecordDict({"own": ConfigRecord({"rate": 7.0})}), reply_to=message)
        kept.append(reply)
        return reply

    grid = LocalGrid(app, 3, {})
    content = RecordDict({"config": ConfigRecord({"rate": 1.0}), "arrays": ArrayRecord()})
    replies = list(grid.send_and_receive([Message(content, n, "train") for n in (2, 3, 4)]))
    assert rates == [1.0, 1.0, 1.0]
    assert content["config"]["rate"] == 1.0
    assert "arrays" in content
    kept[0].content["own"]["rate"] = 0.0
    assert [reply.content["own"]["rate"] for reply in replies] == [7.0] * 3


def test_there_is_an_error_for_a_node_that_is_not_there():
    grid = LocalGrid(ClientApp(), 1, {})
    (reply,) = grid.send_and_receive([Message(RecordDict(), 9, "train")])
    assert reply.error.code == ErrorCode.NODE_UNAVAILABLE


def test_a_task_keeps_its_identity(monkeypatch):
    """A ServerApp that makes a LocalGrid beside its own goes on under its own ids."""
    for name, value in (("_task_id", 77), ("_run_id", 99), ("_node_id", 55)):
        monkeypatch.setattr(TaskIdentity, name, value)
    app, inside = ClientApp(), []

    @app.train()
    def train(message, context):
        inside.append(TaskIdentity.node_id)
        return Message(RecordDict(), reply_to=message)

    grid = LocalGrid(app, 1, {})
    list(grid.send_and_receive([Message(RecordDict(), 2, "train")]))
    assert inside == [2]
    assert (TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id) == (77, 99, 55)
