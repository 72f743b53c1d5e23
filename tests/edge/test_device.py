"""A device installs what is intact, keeps what it has otherwise, and survives its worker."""

import numpy as np
import pytest
import torch
from flwr.app import RecordDict

from airllm.lora.adapter import Adapter
from airllm.lora.evaluation import evaluate
from airllm.lora.payload import encode
from airllm.models.base import ModelConfig
from airllm.models.batches import Examples, tokenize
from airllm.models.head import Head
from airllm.models.sources import load_base
from airllm.protocol import DeviceReport
from edge.device import Device, DeviceProfile, DeviceState
from edge.state import read_state, write_state

TEXTS = [f"text {i}" for i in range(6)]
LABELS = [0, 1] * 3


@pytest.fixture(scope="module")
def base():
    return load_base(ModelConfig(name="tiny:bert", precision="fp32", device="cpu"))


@pytest.fixture
def device(base):
    ids = tokenize(base, TEXTS)
    device = Device(
        base,
        DeviceProfile(3, 0.5, 0.1, 6, Examples(ids, LABELS), adapter_rank=4),
        DeviceState(Adapter.zero(base.specs)),
    )
    generator = torch.Generator().manual_seed(0)
    device.deploy(Head(torch.randn(2, base.num_features, generator=generator), torch.zeros(2)))
    return device


def payload_of(base, *, coding, rank=2, seed=0, number=1):
    generator = torch.Generator().manual_seed(seed)
    adapter = Adapter(
        tuple(torch.randn(rank, s.in_features, generator=generator) / 5 for s in base.specs),
        tuple(torch.randn(s.out_features, rank, generator=generator) / 5 for s in base.specs),
    )
    return encode(adapter, number=number, number_format="fp32", coding=coding), adapter


def test_an_intact_update_is_installed_and_measured(base, device):
    before = device.report()
    data, adapter = payload_of(base, coding="absolute", number=7)
    after = device.report(is_installed=device.install(data))
    assert after.is_installed
    assert (before.update_number, after.update_number) == (0, 7)
    measured = evaluate(base, device.state.head, adapter, device.profile.examples)
    assert after.loss == pytest.approx(measured.loss)
    assert after.loss != before.loss


def test_a_damaged_update_changes_nothing(base, device):
    before = device.report()
    data = bytearray(payload_of(base, coding="absolute")[0])
    data[40] ^= 4
    after = device.report(is_installed=device.install(bytes(data)))
    assert not after.is_installed
    assert after == before


def test_residual_updates_add_up_and_absolute_ones_replace(base, device):
    first, a = payload_of(base, coding="residual", seed=1)
    second, b = payload_of(base, coding="residual", seed=2)
    device.install(first)
    device.install(second)
    torch.testing.assert_close(device.state.device_adapter.delta(0), a.delta(0) + b.delta(0))
    third, c = payload_of(base, coding="absolute", seed=3)
    device.install(third)
    torch.testing.assert_close(device.state.device_adapter.delta(0), c.delta(0))


def test_accumulated_updates_stay_within_the_rank_that_is_held(base, device):
    for seed in range(4):
        device.install(payload_of(base, coding="residual", seed=seed)[0])
    assert device.state.device_adapter.ranks.max() == 4


def test_an_empty_update_costs_no_measurement(base, device, monkeypatch):
    before = device.report()

    def must_not_run(*args):
        raise AssertionError("nothing changed, so nothing is to be measured")

    monkeypatch.setattr("edge.device.evaluate_together", must_not_run)
    empty = encode(Adapter.zero(base.specs), number=2, number_format="fp16", coding="residual")
    after = device.report(is_installed=device.install(empty))
    assert (after.loss, after.is_installed, after.update_number) == (before.loss, True, 2)


def test_the_state_survives_flowers_records(base, device):
    device.install(payload_of(base, coding="residual")[0])
    device.report()
    store = RecordDict()
    write_state(store, device.state)
    again = read_state(store, base)
    assert again.metrics == device.state.metrics
    assert again.update_number == 1
    for kept, read in zip(device.state.device_adapter.up, again.device_adapter.up, strict=True):
        assert torch.equal(kept, read)
    assert torch.equal(again.head.weight, device.state.head.weight)
    assert read_state(RecordDict(), base).metrics is None


def test_a_report_survives_flowers_metrics(device):
    report = device.report()
    assert DeviceReport.from_metrics(report.to_metrics()) == report
    assert not np.isnan(report.loss)
    with pytest.raises(ValueError, match="lacks entropy"):
        DeviceReport.from_metrics({k: v for k, v in report.to_metrics().items() if k != "entropy"})
