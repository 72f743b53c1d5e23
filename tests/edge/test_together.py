"""Devices of one process, asked together: what each would have said alone."""

from dataclasses import replace

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from airllm.lora.adapter import Adapter
from airllm.lora.evaluation import evaluate
from airllm.lora.local_update import LocalTraining, train_local
from airllm.lora.payload import decode
from airllm.models.base import ModelConfig
from airllm.models.batches import Examples, tokenize
from airllm.models.head import Head
from airllm.models.sources import load_base
from airllm.protocol import unpack_utility
from edge.client_app import answer, answer_together
from edge.device import Device, DeviceProfile, DeviceState, measure
from edge.hardware import load_hardware
from edge.local_update import LocalWork
from edge.state import write_state


def base_of(name):
    task = "causal" if name == "tiny:opt" else "classify"
    config = ModelConfig(name=name, precision="fp32", device="cpu", task=task)
    return load_base(config, seed=0)


def head_of(base):
    if base.config.task == "causal":
        return None
    generator = torch.Generator().manual_seed(0)
    return Head(torch.randn(2, base.num_features, generator=generator), torch.zeros(2))


def adapter_of(base, rank, seed):
    generator = torch.Generator().manual_seed(seed)
    return Adapter(
        tuple(torch.randn(rank, s.in_features, generator=generator) / 5 for s in base.specs),
        tuple(torch.randn(s.out_features, rank, generator=generator) / 5 for s in base.specs),
    )


def profile_of(base, device):
    """A device has its own number of texts, of lengths of their own."""
    texts = ["a word or two" + " and more" * (i % 4) for i in range(4 + 3 * device)]
    ids, labels = tokenize(base, texts), [i % 2 for i in range(len(texts))]
    return DeviceProfile(device, 0.5, 0.1, len(ids), Examples(ids, labels), adapter_rank=4)


def devices_of(base, head, count=4):
    return [
        Device(base, profile_of(base, d), DeviceState(adapter_of(base, d % 3, d), head=head))
        for d in range(count)
    ]


@pytest.mark.parametrize("name", ["tiny:bert", "tiny:opt"])
def test_devices_measured_together_have_what_each_measures_alone(name, float64):
    base = base_of(name)
    head = head_of(base)
    devices = devices_of(base, head)
    measure(devices)
    for device in devices:
        alone = evaluate(base, head, device.state.device_adapter, device.profile.examples)
        found = device.state.metrics
        assert (found.accuracy, found.count) == (alone.accuracy, alone.count)
        assert found.loss == pytest.approx(alone.loss, rel=1e-12)


def test_what_has_not_changed_is_not_measured_again(monkeypatch):
    base = base_of("tiny:bert")
    devices = devices_of(base, head_of(base))
    measure(devices)
    known = [device.state.metrics for device in devices]

    def must_not_run(*args, **values):
        raise AssertionError("nothing changed, so nothing is to be measured")

    monkeypatch.setattr("edge.device.evaluate_together", must_not_run)
    measure(devices)
    assert [device.state.metrics for device in devices] == known
    for device in devices:
        device.report()


def query_all(base, devices):
    """A query to each device's node; the third node has lost its state."""
    asked = []
    for d, device in enumerate(devices):
        context = Context(1, d + 2, {"partition-id": d}, RecordDict(), {})
        if d != 2:
            write_state(context.state, device.state)
        asked.append((Message(RecordDict(), d + 2, "query"), context))
    return asked


def test_every_message_has_its_own_answer(float64):
    # Flower lets a message be made inside a task only.
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    base = base_of("tiny:bert")
    devices = devices_of(base, head_of(base), count=40)

    def load(context):
        return base, devices[int(context.node_config["partition-id"])].profile

    alone = [answer(load, [one])[0] for one in query_all(base, devices)]
    # In whatever order they are asked, their answers are the same.
    together = answer_together(load, query_all(base, devices))
    backwards = answer_together(load, query_all(base, devices)[::-1])[::-1]
    assert [reply.content for reply in backwards] == [reply.content for reply in together]
    assert [d for d, reply in enumerate(together) if "report" not in reply.content] == [2]
    losses = set()
    for d, (a, b) in enumerate(zip(alone, together, strict=True)):
        assert b.metadata.src_node_id == d + 2
        if d == 2:
            assert "report" not in a.content
            continue
        first, second = (dict(x.content.metric_records["report"]) for x in (a, b))
        losses.add(second["loss"])
        assert second.pop("loss") == pytest.approx(first.pop("loss"), rel=1e-12)
        assert first == second
        assert first["device"] == d
    assert len(losses) >= 25  # those who hold nothing may have the same


def worker_of(base, device):
    """A device with text of its own to train on."""
    profile = profile_of(base, device)
    work = LocalWork(
        examples=profile.examples, batch_size=3,
        training=LocalTraining(
            steps=2, learning_rate=1e-2, scale=2.0, start="device", is_factored=False,
            trains_down=True, seed=0,
        ),
        sends="change", number_format="fp32", r_max=4, initial=Adapter.zero(base.specs),
        shared_down=None, hardware=load_hardware("phone"),
    )  # fmt: skip
    return replace(profile, work=work)


def test_devices_asked_together_train_and_send_what_each_would_alone(monkeypatch, float64):
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    base, sizes = base_of("tiny:bert"), []
    profiles = [worker_of(base, d) for d in range(4)]
    ranks = bytes([2] * len(base.specs))

    def counted(base, head, jobs, training):
        sizes.append(len(jobs))
        return train_local(base, head, jobs, training)

    monkeypatch.setattr("edge.local_update.train_local", counted)

    def load(context):
        return base, profiles[int(context.node_config["partition-id"])]

    def ask(contexts, kind, records, by_itself):
        asked = [(Message(RecordDict(dict(records)), c.node_id, kind), c) for c in contexts]
        if by_itself:
            return [answer(load, [one])[0].content.config_records for one in asked]
        return [reply.content.config_records for reply in answer_together(load, asked)]

    found = []
    for by_itself in (True, False):
        contexts = []
        for d, device in enumerate(devices_of(base, head_of(base))):
            contexts.append(Context(1, d + 2, {"partition-id": d}, RecordDict(), {}))
            write_state(contexts[d].state, device.state)
        # The last one is not asked to train.
        work = ConfigRecord({"ranks": ranks, "importance": "energy", "round": 1})
        replies = ask(contexts[:3], "train", {"work": work}, by_itself)
        replies += ask(contexts[3:], "train", {}, by_itself)
        assert ["work" in reply for reply in replies] == [True, True, True, False]
        grant = ConfigRecord({"ranks": ranks, "number": 1})
        sent = ask(contexts[:3], "train.send", {"grant": grant}, by_itself)
        trained = zip(replies[:3], sent, strict=True)
        found.append([(reply["work"], own["update"]["payload"]) for reply, own in trained])
        assert sizes == ([1, 1, 1] if by_itself else [1, 1, 1, 3])
    for (alone, payload), (together, other) in zip(*found, strict=True):
        assert together["compute_s"] == alone["compute_s"]
        assert together["compute_j"] == alone["compute_j"]
        torch.testing.assert_close(
            torch.tensor(unpack_utility(together["utility"], len(base.specs))),
            torch.tensor(unpack_utility(alone["utility"], len(base.specs))),
            rtol=2**-7, atol=1e-7,  # told in bf16, cut off
        )  # fmt: skip
        update, same = (decode(data, base.specs).adapter for data in (payload, other))
        for p in range(len(base.specs)):
            # Sent in fp32.
            torch.testing.assert_close(update.delta(p), same.delta(p), rtol=1e-5, atol=1e-6)
        assert update.ranks.max() == 2
