"""Federated mode end to end: who trains what, what goes up, what is merged, what is refused."""

import numpy as np
import pandas as pd
import pytest

from airllm.lora.multi_lora import MultiLora
from cloud.aggregation import merger
from cloud.rounds.air_interface import AirInterface
from experiments.assembly import workbench as build
from experiments.config.loader import load_config
from experiments.config.schema import PRESETS, ExperimentConfig
from experiments.run.privacy_accounting import epsilon
from experiments.runtimes.local import run_simulation

METHODS = ("airllm", "fedit", "hetlora", "flora", "flexlora", "raflora", "ffa-lora")
POLICIES = ("airllm", "paper", "random", "fixed:2", "greedy:energy", "greedy:gain", "knapsack:gain")
WIDE = ("channel.bandwidth_hz=1e7", "channel.fading=none")
LEARNS = ("federated.local_learning_rate=1e-2", "rounds=5", "federated.local_steps=4")


def config_of(path, *sets):
    return load_config(ExperimentConfig, path, ("mode=federated", *sets), presets=PRESETS)


def rounds_of(path, out, *sets):
    summary = run_simulation(config_of(path, *sets), out)
    return summary, pd.read_csv(out / "rounds.csv")


@pytest.fixture(autouse=True)
def fresh_workbench():
    """No test may live on what another has cached."""
    build._workbench.cache_clear()
    build._base.cache_clear()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_from_its_devices(method, tiny_toml, tmp_path):
    summary, rounds = rounds_of(tiny_toml, tmp_path, f"federated.method={method}", *WIDE, *LEARNS)
    assert summary["full_loss"] < summary["head_loss"]
    assert (rounds["uplink_delivered"] == 1).all()
    # What everybody has from the deployment on is not sent; from then on it is.
    first, later = rounds[rounds["round"] == 1], rounds[rounds["round"] > 1]
    assert (first["payload_bits"] == 0).all()
    assert (later["payload_bits"] > 0).all()
    assert (rounds["compute_s"] > 0).all()


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_decides_in_both_directions(policy, tiny_toml, tmp_path):
    sets = (f"policy.name={policy}", "channel.bandwidth_hz=2e5", "rounds=3")
    _, rounds = rounds_of(tiny_toml, tmp_path, *sets)
    assert rounds["uplink_rank_sum"].sum() > 0
    assert np.isfinite(rounds.drop(columns=["device"])).all().all()
    for _, of_round in rounds.groupby("round"):
        for direction in ("", "uplink_"):
            air_s = of_round[f"{direction}sent_bits"] / of_round["rate_bps"]
            assert air_s.sum() <= 1.0 + 1e-9


def test_the_same_configuration_gives_the_same_bytes(tiny_toml, tmp_path):
    sets = ("policy.name=airllm", "federated.dropout=0.3", "rounds=3", "channel.bandwidth_hz=2e5")
    for name in ("first", "second"):
        build._workbench.cache_clear()
        run_simulation(config_of(tiny_toml, *sets), tmp_path / name)
    for file in ("rounds.csv", "summary.json"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


def test_the_head_travels_and_is_counted(tiny_toml, tmp_path):
    """12 projections of tiny:bert and a head of 2 classes on 32 features and a constant 1, whose
    update has rank 1: what is more for one class is less for the other."""
    _, rounds = rounds_of(tiny_toml, tmp_path, *WIDE, "policy.name=fixed:2", "rounds=1")
    with np.load(tmp_path / "ranks.npz") as file:
        assert list(file["projections"])[-1] == "head"
    parameters = 2 * (8 * 64 + 4 * 96) + 33 + 2
    assert (rounds["uplink_payload_bits"] == 8 * (10 + 13) + 16 * parameters).all()


def test_a_frozen_a_halves_what_is_sent(tiny_toml, tmp_path):
    common = (*WIDE, "policy.name=fixed:2", "rounds=2")
    _, both = rounds_of(tiny_toml, tmp_path / "a", *common, "federated.method=fedit")
    _, half = rounds_of(tiny_toml, tmp_path / "b", *common, "federated.method=ffa-lora")
    for column, start in (("payload_bits", 2), ("uplink_payload_bits", 1)):
        ratio = half[column] / both[column]
        assert ratio[half["round"] >= start].between(0.4, 0.55).all()


def test_a_narrow_uplink_loses_updates_and_nothing_is_merged(tiny_toml, tmp_path):
    sets = (
        "policy.name=fixed:4", "channel.bandwidth_hz=1e7", "channel.uplink_offset_db=-60",
        "channel.fading=none", "rounds=2",
    )  # fmt: skip
    summary, rounds = rounds_of(tiny_toml, tmp_path, *sets)
    assert (rounds["uplink_payload_bits"] > 0).all()
    assert (rounds["uplink_sent_bits"] < rounds["uplink_payload_bits"]).all()
    assert (rounds["uplink_delivered_bits"] == 0).all()
    assert summary["full_loss"] == pytest.approx(summary["head_loss"])


def test_damaged_updates_are_refused_and_leave_no_trace(tiny_toml, tmp_path, caplog):
    sets = (*WIDE, "channel.residual_error_rate=1.0", "rounds=2")
    summary, rounds = rounds_of(tiny_toml, tmp_path, *sets)
    assert (rounds["uplink_delivered_bits"] > 0).all()
    assert (rounds["uplink_delivered"] == 0).all()
    assert "update of device 1 refused (checksum)" in caplog.text
    assert summary["full_loss"] == pytest.approx(summary["head_loss"])


def test_only_the_sampled_take_part(tiny_toml, tmp_path):
    sets = (*WIDE, "num_devices=4", "federated.participants=2", "rounds=4", "examples_per_device=4")
    _, rounds = rounds_of(tiny_toml, tmp_path, *sets)
    trained = rounds[rounds["compute_s"] > 0]
    assert (trained.groupby("round").size() == 2).all()
    assert trained["device"].nunique() > 2
    idle = rounds[rounds["compute_s"] == 0]
    assert (idle[["payload_bits", "uplink_payload_bits", "overhead_bits"]] == 0).all().all()


def test_a_slow_device_misses_the_round_and_the_others_go_on(tiny_toml, tmp_path):
    slow = tmp_path / "slow.toml"
    slow.write_text("flops_per_s = 1e6\npower_w = 1.0\nmemory_bytes = 1e9\n")
    sets = (*WIDE, f"federated.hardware=phone,{slow}", "federated.deadline_s=2", "rounds=3")
    _, rounds = rounds_of(tiny_toml, tmp_path / "out", *sets)
    quick, late = rounds[rounds["device"] == 0], rounds[rounds["device"] == 1]
    assert (late["compute_s"] > 2).all()
    assert (quick["uplink_delivered"] == 1).all()
    assert (late["uplink_delivered"] == 0).all()
    assert (rounds["round_s"] <= 2).all()
    # It trained until the deadline, at one watt.
    assert late["energy_j"].between(1.5, 2.5).all()


def test_without_a_deadline_the_slowest_is_waited_for(tiny_toml, tmp_path):
    slow = tmp_path / "slow.toml"
    slow.write_text("flops_per_s = 1e6\npower_w = 1.0\nmemory_bytes = 1e9\n")
    sets = (*WIDE, f"federated.hardware=phone,{slow}", "rounds=2")
    _, rounds = rounds_of(tiny_toml, tmp_path / "out", *sets)
    assert (rounds["uplink_delivered"] == 1).all()
    per_round = rounds.groupby("round").first()
    longest = (rounds["delay_s"] + rounds["compute_s"] + rounds["uplink_delay_s"]).groupby(
        rounds["round"]
    )
    np.testing.assert_allclose(per_round["round_s"], longest.max())
    # The next round starts when this one is over.
    assert per_round["time_s"].iloc[1] == pytest.approx(per_round["round_s"].iloc[0])


def test_who_drops_out_comes_back_and_the_run_goes_on(tiny_toml, tmp_path):
    sets = (*WIDE, "federated.dropout=0.6", "rounds=8", "num_devices=3", "examples_per_device=4")
    summary, rounds = rounds_of(tiny_toml, tmp_path, *sets)
    assert 0 < rounds["uplink_delivered"].mean() < 1
    assert (rounds["answered"] == 1).all()  # the air and the devices were silent, not the nodes
    assert rounds.groupby("device")["uplink_delivered"].sum().gt(0).all()
    assert summary["full_loss"] < summary["head_loss"]


def test_the_cloud_may_go_on_from_what_was_merged(tiny_toml, tmp_path):
    sets = (*WIDE, "rounds=2", "federated.local_learning_rate=1e-6")
    alone, _ = rounds_of(tiny_toml, tmp_path / "a", *sets)
    sets = (*WIDE, "rounds=2", "federated.local_learning_rate=1e-2", "federated.cloud_steps=8")
    helped, _ = rounds_of(tiny_toml, tmp_path / "b", *sets)
    assert alone["full_loss"] == pytest.approx(alone["head_loss"], rel=1e-2)
    assert helped["full_loss"] < alone["full_loss"]


def test_a_causal_model_learns_too(tiny_toml, tmp_path):
    sets = ("model.name=tiny:gpt2", "model.task=causal", "data.label_column=")
    summary, _ = rounds_of(tiny_toml, tmp_path, *sets, *WIDE, *LEARNS)
    assert summary["full_loss"] < summary["head_loss"]


def test_over_the_air_all_send_at_once_and_the_weak_are_silent(tiny_toml, tmp_path):
    sets = ("federated.aggregator=aircomp", "policy.name=fixed:2", "channel.bandwidth_hz=1e7")
    sets += ("channel.fading=none", "channel.snr_db=20")
    summary, rounds = rounds_of(tiny_toml, tmp_path / "a", *sets, *LEARNS)
    assert summary["full_loss"] < summary["head_loss"]
    # B alone, of rank 2: 12 projections of tiny:bert and the head, two symbols a channel use.
    symbols = 2 * (10 * 32 + 2 * 64 + 2)
    assert (rounds["uplink_payload_bits"] == symbols).all()
    alone = rounds.groupby("round")["uplink_delay_s"].min()
    np.testing.assert_allclose(alone, symbols / (2 * 1e7), rtol=1e-6)
    sets += ("federated.air_threshold_db=30",)
    summary, rounds = rounds_of(tiny_toml, tmp_path / "b", *sets, "rounds=1")
    assert (rounds["uplink_delivered"] == 0).all()
    assert summary["full_loss"] == pytest.approx(summary["head_loss"])


def test_who_is_heard_over_a_channel_that_moves_is_who_is_summed(tiny_toml, tmp_path, monkeypatch):
    """By the fading of when all send, and not of when they had their own update."""
    heard, summed = [], []
    carry_up, align = AirInterface.carry_up, merger.align

    def listened(self, payloads, symbols):
        arrived = carry_up(self, payloads, symbols)
        heard.append(len(arrived))
        return arrived

    def aligned(gains, *args, **kwargs):
        found = align(gains, *args, **kwargs)
        summed.append(int(found.is_active.sum()))
        return found

    monkeypatch.setattr(AirInterface, "carry_up", listened)
    monkeypatch.setattr(merger, "align", aligned)
    rounds_of(
        tiny_toml, tmp_path, "federated.aggregator=aircomp", "policy.name=fixed:2", "rounds=6",
        "channel.bandwidth_hz=1e7", "channel.fading=clarke", "channel.doppler_hz=20",
        "channel.snr_db=10", "federated.air_threshold_db=8", "federated.hardware=phone",
        "num_devices=4",
    )  # fmt: skip
    assert any(0 < count < 4 for count in heard)
    assert summed == [count for count in heard if count]


def test_unequal_devices_train_unequal_ranks(tiny_toml, tmp_path):
    _, rounds = rounds_of(
        tiny_toml, tmp_path, *WIDE, "federated.ranks=1,4", "federated.method=flexlora", "rounds=2"
    )
    by_device = rounds[rounds["round"] == 2].set_index("device")["uplink_rank_sum"]
    assert by_device[0] <= 13
    assert by_device[1] > 20


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["federated.method=flexlra"], "did you mean 'flexlora'"),
        (["federated.aggregator=mean"], "federated.aggregator must be one of exact"),
        (["policy.name=adalora"], "take another policy or mode = 'remote'"),
        (["training.head_examples=0"], "training.head_examples must be > 0 in federated mode"),
        (["federated.ranks=9"], "federated.ranks must be at most training.r_max 4, got 9"),
        (["federated.deadline_s=0.5"], "must be above channel.deadline_s 1.0"),
        (["federated.hardware=phon"], "did you mean 'phone'"),
        (["policy.name=airllm", "policy.is_exploring=true", "federated.participants=1"],
         "federated.participants = 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_named(sets, message, tiny_toml):
    with pytest.raises(ValueError, match=message):
        run_simulation(config_of(tiny_toml, *sets))


def test_a_device_without_the_memory_is_named(tiny_toml, tmp_path):
    small = tmp_path / "small.toml"
    small.write_text("flops_per_s = 1e6\npower_w = 1.0\nmemory_bytes = 1e4\n")
    with pytest.raises(ValueError, match=r"device 0 \(small\) has 0 MB, but training takes"):
        run_simulation(config_of(tiny_toml, f"federated.hardware={small}"))


def test_a_policy_learns_although_nobody_asks_to_send(tiny_toml, tmp_path):
    sets = ("policy.name=airllm", "policy.is_exploring=true", "federated.dropout=0.9", "rounds=6")
    _, rounds = rounds_of(tiny_toml, tmp_path, *sets)
    asking = rounds[rounds["compute_s"] > 0].groupby("round").size()
    assert len(asking) < 6  # there were rounds without a decision
    assert np.isfinite(rounds["reward"]).all()


def test_private_updates_are_noised_and_their_epsilon_reported(tiny_toml, tmp_path):
    ffa = ("federated.method=ffa-lora", *WIDE, *LEARNS)
    plain, plain_rows = rounds_of(tiny_toml, tmp_path / "plain", *ffa)
    noise = ("federated.privacy_noise=0.5", "federated.privacy_clip=0.5")
    private, rows = rounds_of(tiny_toml, tmp_path / "private", *ffa, *noise)
    assert "privacy_epsilon" not in plain
    assert private["privacy_epsilon"] == pytest.approx(epsilon(0.5, 5, 1e-5))
    assert (rows["uplink_delivered"] == 1).all()
    assert not np.allclose(rows["loss"], plain_rows["loss"])


@pytest.mark.parametrize("sets", [("federated.method=airllm",), ("federated.method=hetlora",),
                                  ("federated.method=ffa-lora", "federated.buffer=2")])  # fmt: skip
def test_privacy_is_refused_where_no_norm_bounds_an_update(tiny_toml, sets):
    with pytest.raises(ValueError, match="privacy_noise 1.0 needs a frozen A"):
        config_of(tiny_toml, "federated.privacy_noise=1", *sets)


@pytest.mark.parametrize("noise", ["1e-160", "1e200", "nan", "-1"])
def test_noise_that_no_accountant_can_count_is_refused(noise, tiny_toml):
    with pytest.raises(ValueError, match="federated.privacy_noise must be"):
        config_of(tiny_toml, "federated.method=ffa-lora", f"federated.privacy_noise={noise}")


def test_air_time_is_that_of_both_directions(tiny_toml, tmp_path):
    summary, rounds = rounds_of(tiny_toml, tmp_path, "rounds=3", "channel.bandwidth_hz=2e5")
    longest = rounds.groupby("round")[["delay_s", "uplink_delay_s"]].max().sum()
    assert (longest > 0).all()
    assert summary["airtime_s"] == pytest.approx(longest.sum())


STACKED = [
    ("mode=remote", "policy.name=greedy:gain"),
    ("mode=federated", "policy.name=greedy:gain", "federated.method=airllm"),
    ("mode=federated", "policy.name=uniform", "federated.method=raflora"),
    ("mode=federated", "policy.name=uniform", "federated.method=ffa-lora"),
]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("sets", STACKED, ids=["remote", "airllm", "raflora", "ffa-lora"])
def test_stacked_devices_come_to_the_same_but_for_the_last_digits(
    sets, seed, tiny_toml, tmp_path, monkeypatch, float64
):
    # How many devices are measured and trained in the same passes.
    together: dict[str, list[int]] = {"evaluation": [], "local_update": []}
    for user, sizes in together.items():

        def counted(base, head, frozen, *trained, sizes=sizes, **values):
            sizes.append(len(frozen))
            return MultiLora(base, head, frozen, *trained, **values)

        monkeypatch.setattr(f"airllm.lora.{user}.MultiLora", counted)
    sets = (
        "num_devices=5", "rounds=4", "channel.bandwidth_hz=2e5", "federated.ranks=[1,2,4]",
        f"seed={seed}", *sets,
    )  # fmt: skip
    _, expected = rounds_of(tiny_toml, tmp_path / "alone", *sets)
    assert max(max(sizes, default=1) for sizes in together.values()) == 1
    for sizes in together.values():
        sizes.clear()
    _, found = rounds_of(tiny_toml, tmp_path / "together", *sets, "runtime.stacked=true")
    # One that has not changed is not measured again, but at first all are; all train.
    assert max(together["evaluation"]) == 5
    assert set(together["local_update"]) == ({5} if "mode=federated" in sets else set())
    pd.testing.assert_frame_equal(found, expected, rtol=1e-5, atol=1e-6)
    run_simulation(config_of(tiny_toml, *sets, "runtime.stacked=true"), tmp_path / "again")
    for name in ("rounds.csv", "ranks.npz"):
        first, again = (tmp_path / folder / name for folder in ("together", "again"))
        assert first.read_bytes() == again.read_bytes()


def test_asynchronous_rounds_have_nothing_to_stack(tiny_toml):
    with pytest.raises(ValueError, match="nothing to stack in asynchronous rounds"):
        config_of(tiny_toml, "federated.buffer=2", "runtime.stacked=true")
