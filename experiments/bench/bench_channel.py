"""The channel's speed and its path loss against Sionna's.

python -m experiments.bench.bench_channel (for b and c: pip install 'airllm-sim[bench]')

(a) 1,000 devices x 100 rounds of downlink, compute and uplink on one shared band, and how time
    grows with the number of devices; (b) path loss against sionna-no-rt on the same drops; (c)
    fading samples a second against Sionna's sum of sinusoids. One thread.
"""

from __future__ import annotations

import os
import platform
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from channel import Cell, ChannelConfig
from channel.config import Fading
from channel.fading import ClarkeProcess
from channel.pathloss import path_loss_db


def rounds(num_devices: int, num_rounds: int, fading: Fading) -> float:
    """Seconds for downlink, compute and uplink of all devices."""
    # About half of a device's share of the band, so that most get through.
    config = ChannelConfig(fading=fading, doppler_hz=5.0, round_period_s=3.0)
    bits = dict.fromkeys(range(num_devices), max(int(0.7e6 / num_devices), 1))
    cell = Cell(config, num_devices, seed=0)
    started = time.perf_counter()
    for round_index in range(num_rounds):
        cell.begin_round(round_index)
        down = cell.transfer(bits)
        start_s = {}
        for device, delivery in down.items():
            if delivery.is_delivered:
                start_s[device] = 0.2 * (1 + device % 7) / 7
        cell.transfer({d: bits[d] for d in start_s}, direction="up", start_s=start_s)
    return time.perf_counter() - started


def bench_rounds() -> None:
    print("(a) downlink, compute and uplink on one shared band")
    kinds: tuple[Fading, ...] = ("rayleigh", "clarke")
    for fading in kinds:
        took = rounds(1000, 100, fading)
        print(f"    1,000 devices x 100 rounds, {fading:8s}: {took:6.2f} s")
    sizes = (100, 1000, 10_000)
    seconds = [rounds(n, 10, "rayleigh") for n in sizes]
    for n, s in zip(sizes, seconds, strict=True):
        unit = s / (n * np.log2(n)) * 1e6
        print(f"    {n:6,d} devices x 10 rounds, rayleigh: {s:6.2f} s, {unit:.2f} us / (n log2 n)")


def bench_path_loss() -> None:
    print("(b) path loss against sionna-no-rt, 1,000 drops each, 3.5 GHz")
    import torch
    from sionna.phy.channel.tr38901 import PanelArray, UMaScenario, UMiScenario

    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    carrier_hz, drops = 3.5e9, 1000
    array = PanelArray(1, 1, "single", "V", "omni", carrier_hz, precision="double")
    for name, scenario_class, height in (("umi", UMiScenario, 10.0), ("uma", UMaScenario, 25.0)):
        distance = rng.uniform(15.0, 1500.0, drops)
        scenario = scenario_class(
            carrier_frequency=carrier_hz, o2i_model="low", ut_array=array, bs_array=array,
            direction="downlink", precision="double",
        )  # fmt: skip
        ut = torch.zeros(1, drops, 3, dtype=torch.float64)
        ut[0, :, 0], ut[0, :, 2] = torch.from_numpy(distance), 1.5
        bs = torch.zeros(1, 1, 3, dtype=torch.float64)
        bs[0, 0, 2] = height
        worst = 0.0
        for is_los in (True, False):
            started = time.perf_counter()
            scenario.set_topology(
                ut_loc=ut, bs_loc=bs, ut_orientations=torch.zeros_like(ut),
                bs_orientations=torch.zeros_like(bs), ut_velocities=torch.zeros_like(ut),
                in_state=torch.zeros(1, drops, dtype=torch.bool), los=is_los,
            )  # fmt: skip
            theirs = scenario.basic_pathloss.reshape(-1).double().numpy()
            their_s = time.perf_counter() - started
            started = time.perf_counter()
            ours = path_loss_db(name, distance, carrier_hz, is_los=is_los)
            our_s = time.perf_counter() - started
            worst = max(worst, float(np.abs(ours - theirs).max()))
        print(
            f"    {name}: largest difference {worst:.1e} dB; {their_s / our_s:.0f} times faster "
            f"(Sionna also draws all large-scale parameters)"
        )


def bench_fading() -> None:
    print("(c) fading, samples a second: one tap of 1,000 devices")
    import torch
    from sionna.phy.channel import tr38901

    torch.set_num_threads(1)
    num_devices, steps = 1000, 500
    walk = ClarkeProcess(num_devices, 20.0, seed=0).walk(0.0, 1e-3)
    started = time.perf_counter()
    for _ in range(steps):
        next(walk)
    ours = num_devices * steps / (time.perf_counter() - started)
    tdl = tr38901.TDL("A", 100e-9, 2e9, max_speed=3.0)
    tdl(16, 8, 1e3)
    started = time.perf_counter()
    gains, _ = tdl(num_devices, steps, 1e3)
    seconds = time.perf_counter() - started
    theirs = float(np.prod(gains.shape)) / seconds
    print(f"    ours, 32 sinusoids: {ours:.2e}; Sionna TDL-A, 20 sinusoids, each tap: {theirs:.2e}")


def main() -> None:
    print(f"{platform.processor() or platform.machine()}, one thread, python "
          f"{platform.python_version()}, numpy {np.__version__}")  # fmt: skip
    bench_rounds()
    try:
        bench_path_loss()
        bench_fading()
    except ImportError as error:
        print(f"(b), (c) left out: {error}; pip install 'airllm-sim[bench]'")


if __name__ == "__main__":
    main()
