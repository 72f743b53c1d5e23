"""Asynchronous rounds with stand-ins for the model: what comes first where all comes at once."""

import hashlib
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from airllm.checkpoint import load_state, save_state
from airllm.lora.adapter import Adapter
from airllm.protocol import DeviceReport, Download, Reply, TrainingOrder, TrainingReport
from channel import Cell, ChannelConfig
from channel.open_cell import OpenCell
from cloud.clients.participation import Participation
from cloud.rounds.asynchronous import AsynchronousRounds

ROUNDS = 6


class Stub:
    """Cloud and devices in one; its digest is that of all that was asked of it, in order.

    Payloads have no bits, so that cycles of 0.5 s and 1 s of training and rests of 1 s end
    together.
    """

    is_shared_band, num_rounds, num_devices = True, ROUNDS, 2
    overhead_bits = 0

    def __init__(self, seed, digest="", is_losing=False):
        self.seed, self.digest, self.versions = seed, digest, []
        self.is_losing, self.log = is_losing, []
        self.config = SimpleNamespace(participants=0, buffer=1, staleness_exponent=0.5)
        self.base = SimpleNamespace(specs=[None])
        self.participation = Participation(2, 0, 0.0, seed)
        self.inspector = SimpleNamespace(open=self._open)
        self.merger = SimpleNamespace(merge=self._merge)

    def _note(self, *what):
        self.digest = hashlib.sha256(f"{self.digest}{what}".encode()).hexdigest()

    def plan(self, version, reports, links, number):
        (device,) = reports
        self._note("plan", version, device)
        self.versions.append(version)
        ranks = {device: np.ones(1, dtype=np.int64)}
        return SimpleNamespace(payloads={device: b""}, ranks=ranks)

    def orders(self, number, plan, asked):
        return {d: TrainingOrder(plan.ranks[d], "energy", number) for d in asked}

    def ask(self, requests, version):
        ((device, request),) = requests.items()
        self._note(request.kind, version, device)
        is_lost = self.is_losing and int(self.digest[0], 16) < 5
        self.log.append((request.kind, device, not is_lost))
        if is_lost:
            return {}
        report = DeviceReport(device, 0.5, 0.0, 8, 1.0, 0.5, version)
        if isinstance(request, Download):
            number = [self.seed, request.order.round_index, device]
            slow = np.random.default_rng(number).integers(2)
            return {device: Reply(report, TrainingReport(b"", 0.5 + 0.5 * slow, 1.0))}
        return {device: Reply(report, payload=b"")}

    def grant(self, version, requests, asked):
        return {asked[0]: np.ones(1, dtype=np.int64)}

    def _open(self, device, data, granted, number):
        self._note("open", device, number)
        return Adapter((torch.ones(1, 2),), (torch.ones(2, 1),))

    def _merge(self, devices, updates, discounts):
        self._note("merge", devices, discounts)
        self.log.append(("merge", -1, True))

    def refine(self, version):
        pass


def run(seed, path=None, state=None, is_losing=False):
    """(what each merge left, the state after each) of a run, or of the rest of one."""
    config = ChannelConfig(fading="none", bandwidth_hz=1e3, deadline_s=1.0, round_period_s=1.0)
    cell, found, states = Cell(config, 2, seed=seed), [], []
    stub = Stub(seed, state["digest"] if state else "", is_losing)
    if state:
        cell.load_state_dict(state["cell"])

    def on_round(result):
        # The digest is that after the last merge of a moment, for all merges of it.
        found.append((result.round_index, result.round_s, stub.digest))
        stub.overhead_bits += int(result.record.overhead_bits.sum())
        if path and going.version < ROUNDS and going.version == result.round_index + 1:
            whole = {"digest": stub.digest, "cell": cell.state_dict(), "run": going.state_dict()}
            save_state(whole, path / str(going.version))
            states.append(going.version)

    known = {d: DeviceReport(d, 0.5, 0.0, 8, 1.0, 0.5, 0) for d in range(2)}
    going = AsynchronousRounds(
        stub, stub, stub, OpenCell(cell), known, on_round, state=state["run"] if state else None
    )
    going.run()
    return found, states, stub


@pytest.mark.parametrize("is_losing", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_what_ends_together_is_taken_in_its_order_after_a_stop_as_well(seed, is_losing, tmp_path):
    whole, saved, _ = run(seed, tmp_path, is_losing=is_losing)
    assert [r for r, _, _ in whole] == list(range(ROUNDS))
    assert saved
    for done in saved:
        rest, _, _ = run(seed, state=load_state(tmp_path / str(done)), is_losing=is_losing)
        assert rest == whole[done:], done


def test_a_device_is_asked_after_a_lost_answer_before_it_is_sent_anything():
    followed = set()
    for seed in range(12):
        _, _, stub = run(seed, is_losing=True)
        for device in range(2):
            asked = [(kind, is_heard) for kind, d, is_heard in stub.log if d == device]
            for (kind, is_heard), (then, _) in pairwise(asked):
                assert (then == "query") == (not is_heard)
                followed.add((kind, is_heard))
        # Each answer to that is a report on the uplink, as each request to send is.
        last = max(i for i, (kind, *_) in enumerate(stub.log) if kind == "merge")
        reports = [
            kind == "train.send" or (kind == "query" and is_heard)
            for kind, _, is_heard in stub.log[:last]
        ]
        assert stub.overhead_bits == ChannelConfig().report_bits * sum(reports)
    assert followed == {(k, h) for k in ("query", "train", "train.send") for h in (False, True)}


def test_nobody_sets_out_after_the_last_merge():
    for seed in range(12):
        _, _, stub = run(seed)
        assert max(stub.versions) < ROUNDS


def test_what_fails_where_results_go_is_raised_as_it_is(tmp_path):
    """SimPy makes errors of its processes anew, without the name of the file."""
    failure = OSError(28, "No space left on device", "rounds.csv")

    def on_round(result):
        raise failure

    config = ChannelConfig(fading="none", bandwidth_hz=1e3, deadline_s=1.0, round_period_s=1.0)
    known = {d: DeviceReport(d, 0.5, 0.0, 8, 1.0, 0.5, 0) for d in range(2)}
    stub = Stub(0)
    rounds = AsynchronousRounds(
        stub, stub, stub, OpenCell(Cell(config, 2, seed=0)), known, on_round
    )
    with pytest.raises(OSError, match="rounds.csv") as caught:
        rounds.run()
    assert caught.value is failure
