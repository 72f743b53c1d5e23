"""How long policy ``airllm`` takes to decide for a thousand devices on one shared band.

python -m experiments.bench.bench_decide

Random updates whose components fall off as real ones do; the networks are those of a fresh policy,
whose size does not depend on what they have learned. One thread.
"""

from __future__ import annotations

import os
import platform
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from airllm.policies.airllm import AirLlmPolicy
from airllm.policies.observation import RoundObservation
from airllm.rl.ddim import DdimConfig
from airllm.rl.ppo import PpoConfig

MINILM = (6, (768, 768, 768, 768, 1920, 1920))  # layers, parameters of one rank by kind
OPT_1_3B = (24, (4096, 4096, 4096, 4096, 10240, 10240))
_REPEATS = 5


def observation(
    num_devices: int,
    layers: int,
    params: tuple[int, ...],
    *,
    has_fixed_charge: bool,
    r_max: int = 8,
) -> RoundObservation:
    """A round in which a third of one rank everywhere fits, on average."""
    rng = np.random.default_rng(0)
    bits = np.tile(16.0 * np.array(params), layers)  # [projections]
    shape = (num_devices, len(bits), r_max)
    energy = np.sort(rng.exponential(size=shape), axis=2)[:, :, ::-1] * 0.5 ** np.arange(r_max)
    rate_bps = rng.exponential(size=num_devices) + 0.1
    rate_bps *= 0.3 * bits.sum() * num_devices / rate_bps.mean()
    loss = rng.uniform(0.5, 1.5, num_devices)
    return RoundObservation(
        round_index=3, num_rounds=10,
        snr_db=10.0 * np.log10(rate_bps / 1e6), bandwidth_hz=np.full(num_devices, 1e6),
        planned_rate_bps=rate_bps, deadline_s=1.0, is_shared_band=True,
        entropy=rng.random(num_devices), oov_rate=rng.random(num_devices),
        loss=loss, first_loss=loss + 0.2,
        fixed_charge=rng.uniform(0.0, 0.2 * has_fixed_charge, num_devices),
        previous_ranks=np.zeros(shape[:2], dtype=np.int64), bits_per_rank=bits,
        overhead_bits=368.0, r_max=r_max, energy=energy,
        utility=1e-2 * energy + 1e-3 * rng.standard_normal(shape),
    )  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    print(f"one decision of policy airllm, seconds, Python {platform.python_version()}, one thread")
    print(f"{'model':10s} {'devices':>8s} {'residual':>9s} {'absolute':>9s}")
    for name, (layers, params) in (("MiniLM-L6", MINILM), ("OPT-1.3B", OPT_1_3B)):
        depths = [d for d in range(layers) for _ in params]
        policy = AirLlmPolicy(
            depths=depths, kinds=list("qkvoud") * layers, ppo=PpoConfig(), ddim=DdimConfig(),
            priority_scale=1.0, refine_std=0.1, is_exploring=False, seed=0,
        )  # fmt: skip
        for num_devices in (10, 100, 1000):
            row = []
            for has_fixed_charge in (False, True):  # what absolute coding adds
                seen = observation(num_devices, layers, params, has_fixed_charge=has_fixed_charge)
                times = []
                for _ in range(_REPEATS):
                    started = time.process_time()
                    ranks = policy.decide(seen)
                    times.append(time.process_time() - started)
                spent_s = (ranks * seen.unit_cost_s).sum()
                assert spent_s <= seen.budget_s.sum() * (1 + 1e-9)
                row.append(min(times))
            print(f"{name:10s} {num_devices:8d} {row[0]:9.3f} {row[1]:9.3f}", flush=True)


if __name__ == "__main__":
    main()
