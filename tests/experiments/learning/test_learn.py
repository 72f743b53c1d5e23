"""Learning beforehand: it goes on where it stopped, and what it saved decides as it did."""

import csv
import json

import numpy as np
import pytest

from airllm.policies.registry import make_policy
from cloud.environment.env import RankEnvironment
from cloud.environment.scenarios import Episode, Scenario, record, reference_rule
from experiments.config.loader import load_config, scalar
from experiments.config.schema import PRESETS, ExperimentConfig
from experiments.learning.learn import Score, build_scenarios, make_learner
from experiments.runtimes.local import run_simulation

SETS = (
    "policy.name=airllm", "rounds=3", "policy.ppo.num_steps=2", "policy.ppo.log_std=0.0",
    "learn.sharers=[1,2]", "learn.recordings=2", "learn.scenarios=8", "learn.held_out=4",
    "learn.examples=4", "learn.rows=6", "learn.updates=4", "learn.evaluate_every=2",
    "learn.bandwidth_min_hz=1e4", "learn.bandwidth_max_hz=1e5",
)  # fmt: skip


def config_of(path, *sets):
    return load_config(ExperimentConfig, path, (*SETS, *sets), presets=PRESETS)


@pytest.fixture
def config(tiny_toml):
    return config_of(tiny_toml)


def curve_of(folder):
    with open(folder / "learning_curve.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_an_interrupted_learner_ends_where_an_uninterrupted_one_does(config, tmp_path):
    make_learner(config).run(tmp_path / "whole")

    class Stop(Exception):
        pass

    def stop(what, done, total):
        if what == "updates" and done == 3:
            raise Stop

    with pytest.raises(Stop):
        make_learner(config).run(tmp_path / "parts", stop)
    assert len(curve_of(tmp_path / "parts")) < 5
    make_learner(config).run(tmp_path / "parts")
    for name in ("learning_curve.csv", "policy.json", "policy.safetensors"):
        whole, parts = ((tmp_path / part / name).read_bytes() for part in ("whole", "parts"))
        assert whole == parts, name
    rows = curve_of(tmp_path / "whole")
    assert [int(row["update"]) for row in rows] == [0, 1, 2, 3, 4]
    # Before anything was learned the policy is the reference rule.
    assert float(rows[0]["held_out"]) == pytest.approx(0.0, abs=1e-12)
    assert all(row["held_out_absolute"] for row in rows if row["held_out"])
    assert 0.0 < float(rows[1]["used"]) <= 1.0


def test_a_folder_of_another_configuration_is_not_continued(config, tiny_toml, tmp_path):
    make_learner(config_of(tiny_toml, "learn.updates=1")).run(tmp_path / "out")
    with pytest.raises(ValueError, match="another configuration"):
        make_learner(config_of(tiny_toml, "policy.ppo.clip_coef=0.1")).run(tmp_path / "out")


def test_a_finished_policy_learns_on_to_the_same_bytes(tiny_toml, tmp_path):
    for updates in (2, 4):
        settings = (f"learn.updates={updates}", "learn.evaluate_every=2")
        make_learner(config_of(tiny_toml, *settings)).run(tmp_path / "on")
    make_learner(config_of(tiny_toml, *settings)).run(tmp_path / "whole")
    for name in ("learning_curve.csv", "learning.safetensors"):
        assert (tmp_path / "on" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_kept_is_what_is_best_for_sure_and_it_decides_as_it_did(
    config, tiny_toml, tmp_path, monkeypatch
):
    learner, decided = make_learner(config), []
    observations = learner.training.reset()
    # The last is highest, but less surely above the start than the one before.
    scores = iter([Score(0.0, 0.0, {}), Score(0.003, 0.001, {}), Score(0.004, 0.003, {})])

    def score():
        learner.policy.is_exploring = False
        decided.append(learner.policy.decide_all(observations))
        learner.policy.is_exploring = True
        return next(scores)

    monkeypatch.setattr(learner, "score", score)
    learner.run(tmp_path / "out")
    loaded = make_policy(
        config_of(tiny_toml, f"policy.path={tmp_path / 'out'}").policy,
        num_projections=len(learner.depths), depths=learner.depths, kinds=learner.kinds,
        r_max=4, seed=5,
    )  # fmt: skip
    facts = json.loads((tmp_path / "out" / "policy.json").read_text())["learned"]
    assert (facts["updates"], facts["held_out_nats"]) == (2, 0.003)
    for ours, theirs in zip(loaded.decide_all(observations), decided[1], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    summary = run_simulation(
        config_of(tiny_toml, f"policy.path={tmp_path / 'out'}", "payload.coding=absolute")
    )
    assert np.isfinite(summary["loss"])


def test_a_single_scenario_has_no_error_and_a_policy_is_kept_all_the_same(tiny_toml, tmp_path):
    make_learner(config_of(tiny_toml, "learn.held_out=1", "learn.updates=1")).run(tmp_path)
    assert (tmp_path / "policy.json").exists()


def test_a_policy_at_another_largest_rank_is_warned_about(tiny_toml, tmp_path, caplog):
    learner = make_learner(config_of(tiny_toml, "learn.updates=1"))
    learner.run(tmp_path / "out")
    policy = config_of(tiny_toml, f"policy.path={tmp_path / 'out'}").policy
    for r_max in (4, 8):
        assert "was learned" not in caplog.text
        make_policy(
            policy, num_projections=len(learner.depths), depths=learner.depths,
            kinds=learner.kinds, r_max=r_max, seed=0,
        )  # fmt: skip
    assert "was learned at training.r_max 4, this run's is 8; learn one at that" in caplog.text


def test_a_policy_for_another_model_is_refused(config, tiny_toml, tmp_path):
    make_learner(config_of(tiny_toml, "learn.updates=1")).run(tmp_path / "out")
    other = config_of(tiny_toml, f"policy.path={tmp_path / 'out'}")
    arguments = {"num_projections": 2, "r_max": 4, "seed": 0}
    with pytest.raises(ValueError, match=r"12 projections.* this one has 2 \(other\)"):
        make_policy(other.policy, depths=[0, 1], kinds=["other", "other"], **arguments)
    (tmp_path / "out" / "policy.safetensors").write_text("{}")
    with pytest.raises(ValueError, match=r"policy\.safetensors is damaged"):
        make_policy(other.policy, depths=[0, 1], kinds=["q", "q"], **arguments)
    with pytest.raises(ValueError, match=r"holds no policy\.safetensors"):
        make_policy(
            config_of(tiny_toml, "policy.path=nowhere").policy,
            depths=[0, 1], kinds=["q", "q"], **arguments,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("learn.sharers=[4]", "learn.sharers must be at most num_devices 2"),
        ("learn.examples=9", "learn.examples 9 is more than the 8 texts"),
        ("policy.name=uniform", "policy.name must be airllm"),
    ],
)
def test_what_cannot_be_learned_from_is_named(tiny_toml, setting, message):
    with pytest.raises(ValueError, match=message):
        make_learner(config_of(tiny_toml, setting))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("learn.held_out_seeds=[100]", "must differ from learn.seeds, both have 100"),
        ("learn.codings=[sparse]", "learn.codings.0. must be 'absolute'"),
        ("learn.snr_max_db=-20.0", "learn.snr_max_db must be at least"),
        ("learn.bandwidth_max_hz=1.0", "learn.bandwidth_max_hz must be at least"),
        ("learn.rows=0", "learn.rows must be >= 1"),
        ("policy.refiner=gan", "policy.refiner must be 'ddim', 'mlp' or 'none'"),
        ("policy.hide=[snr]", "policy.hide.0. must be 'link'"),
    ],
)
def test_a_wrong_setting_is_named(tiny_toml, setting, message):
    with pytest.raises(ValueError, match=message):
        config_of(tiny_toml, setting)


def test_scenarios_span_codings_sharers_and_rounds(config):
    scenarios = build_scenarios(config, (100, 101), 24, stream=0)
    assert {s.start.payload.coding for s in scenarios} == {"absolute", "residual"}
    assert {len(s.start.devices) for s in scenarios} == {1, 2}
    assert {s.start.round_index for s in scenarios} == {0, 1, 2}
    assert len({s.channel.snr_db for s in scenarios}) == len(scenarios)
    assert len({id(s.start.world) for s in scenarios}) == 2
    for s in scenarios:
        rounds_left = 3 - s.start.round_index
        expected = 1 if s.start.payload.coding == "residual" else rounds_left
        assert len(s.start.residuals) == expected


def test_a_recorded_run_is_the_run_that_the_federation_makes(tiny_toml, float64):
    """The environment's short cut and the real round agree on ranks, losses and deliveries."""
    from experiments.learning.learn import _world

    for coding in ("absolute", "residual"):
        # Networks that say nothing: even a fresh one's small numbers may turn a tie.
        config = config_of(
            tiny_toml, f"payload.coding={coding}", "learn.examples=8",
            "policy.proposer=none", "policy.refiner=none",
        )  # fmt: skip
        world = _world(config)
        starts = record(
            world, config.channel, reference_rule, payload=config.payload,
            importance="second-order", seed=config.seed,
        )  # fmt: skip
        seen = []
        from experiments.run.recorder import Recorder

        class Spy(Recorder):
            def record(self, result, seen=seen):
                super().record(result)
                seen.append((result.record.down.ranks, [r.loss for r in result.record.before]))

        import experiments.run.rounds as module

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "Recorder", Spy)
            run_simulation(config)
        for start, (ranks, loss) in zip(starts, seen, strict=True):
            np.testing.assert_allclose(start.loss, loss, rtol=1e-6)
            episode = Episode(
                Scenario(start, config.channel, config.seed, 0), start.loss, start.first_loss
            )
            np.testing.assert_array_equal(reference_rule(episode.observation), ranks)


@pytest.mark.parametrize(("coding", "num_adapters"), [("absolute", [1, 1]), ("residual", [1, 2])])
def test_a_recording_probes_on_the_texts_that_a_run_would(tiny_toml, coding, num_adapters):
    from dataclasses import replace

    from experiments.learning.learn import _world

    config = config_of(tiny_toml, f"payload.coding={coding}", "learn.examples=8")
    world, asked = _world(config), []

    def texts(*key):
        asked.append(key)
        return world.probe_texts(*key)

    record(
        replace(world, probe_texts=texts), config.channel, reference_rule, payload=config.payload,
        importance="second-order", seed=config.seed,
    )  # fmt: skip
    # Round, devices, and how many different adapters these hold.
    assert asked[:2] == [(0, 2, num_adapters[0]), (1, 2, num_adapters[1])]


def test_the_reward_of_the_reference_rule_is_nothing(config):
    env = RankEnvironment(build_scenarios(config, (100,), 6, stream=0), rows=4, seed=0)
    env.reset()
    for _ in range(4):
        step = env.step([reference_rule(o) for o in env.observations])
        np.testing.assert_allclose(step.reward, 0.0, atol=1e-6)
        assert (step.used <= 1.0 + 1e-9).all()
    assert env.num_steps == 4 * len(step.reward)
    assert np.allclose(env.score(lambda seen: [reference_rule(o) for o in seen]), 0.0, atol=1e-6)
    nothing = env.score(lambda seen: [0 * reference_rule(o) for o in seen])
    assert not np.allclose(nothing, 0.0, atol=1e-6)


def test_the_environment_passes_gymnasiums_checker(tiny_toml):
    gym = pytest.importorskip("gymnasium")
    from gymnasium.utils.env_checker import check_env

    env = gym.make(
        "experiments.learning.gym_env:airllm/RankAllocation-v0",
        config=str(tiny_toml), num_devices=2, sets=SETS,
    )  # fmt: skip
    check_env(env.unwrapped)
    first, again = (env.reset(seed=3)[0] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    _, reward, is_over, is_cut, info = env.step(np.zeros(env.action_space.shape, np.float32))
    assert reward == pytest.approx(0.0, abs=1e-6)  # zeros are the reference rule
    assert info["ranks"].shape == (2, 12)
    assert not is_cut
    assert isinstance(is_over, bool)


def test_the_environment_says_how_far_its_recording_is_and_takes_a_mapping(tiny_toml, caplog):
    pytest.importorskip("gymnasium")
    from experiments.learning.gym_env import RankAllocationEnv

    sets = {
        key: scalar(value) for key, value in (setting.split("=") for setting in SETS)
    } | {"learn.seeds": (100,), "learn.codings": ["residual"]}  # fmt: skip
    with caplog.at_level("INFO"):
        RankAllocationEnv(tiny_toml, num_devices=2, sets=sets)
    assert "recording runs: 0 of 2" in caplog.text
    assert "recording runs: 2 of 2" in caplog.text
    with pytest.raises(ValueError, match="learn.sharers must be at most num_devices 2, got 3"):
        RankAllocationEnv(tiny_toml, num_devices=3, sets=sets)
    with pytest.raises(ValueError, match="sets must be a list of settings, or a mapping; give"):
        RankAllocationEnv(tiny_toml, num_devices=2, sets="learn.scenarios=40")


@pytest.mark.slow
def test_stable_baselines_learns_in_it(tiny_toml):
    gym = pytest.importorskip("gymnasium")
    sb3 = pytest.importorskip("stable_baselines3")
    env = gym.make(
        "experiments.learning.gym_env:airllm/RankAllocation-v0",
        config=str(tiny_toml), num_devices=2, sets=SETS,
    )  # fmt: skip
    model = sb3.PPO("MlpPolicy", env, n_steps=64, batch_size=32, seed=0, device="cpu")
    before = [p.detach().clone() for p in model.policy.parameters()]
    model.learn(256)
    assert any((a != b).any() for a, b in zip(before, model.policy.parameters(), strict=True))


def test_an_environment_draws_on_from_wherever_it_was(config):
    env = RankEnvironment(build_scenarios(config, (100,), 6, stream=0), rows=4, seed=0)
    for num_draws in range(4):  # an odd number leaves half of a 64-bit number for the next draw
        env.seed(0)
        env._rng.choice(30, size=num_draws)
        state = env.state_dict()
        expected = env._rng.choice(30, size=5).tolist()
        env.seed(1)
        env.load_state_dict(state)
        assert env._rng.choice(30, size=5).tolist() == expected
