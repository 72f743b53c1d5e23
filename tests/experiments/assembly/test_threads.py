"""Cores are never shared out twice, and no limit that the machine sets is passed over."""

import logging

import psutil
import pytest
import torch

from experiments.assembly import threads
from experiments.assembly.cgroups import cpu_quota, memory_limit
from experiments.config.schema import load_experiment
from experiments.results.folder import read_summary
from experiments.runtimes.local import run_simulation
from experiments.sweep.sweep import default_jobs, load_sweep, run_sweep


@pytest.fixture
def machine(monkeypatch):
    """A machine of so many usable cores, with a value of OMP_NUM_THREADS."""

    def make(cores, omp=None):
        monkeypatch.setattr(threads, "num_cores", lambda: cores)
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        if omp is not None:
            monkeypatch.setenv("OMP_NUM_THREADS", omp)

    return make


def test_cores_are_counted_where_affinity_is_unknown(monkeypatch):
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    assert threads.num_cores() >= 1


@pytest.mark.parametrize(
    ("affinity", "quota", "expected"),
    [(8, float("inf"), 8), (8, 3.0, 3), (8, 2.9, 2), (2, 16.0, 2), (4, 0.5, 1)],
)
def test_affinity_and_quota_bound_the_cores(monkeypatch, affinity, quota, expected):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(affinity)), raising=False)
    monkeypatch.setattr(threads, "cpu_quota", lambda: quota)
    assert threads.num_cores() == expected


@pytest.mark.parametrize(
    ("wanted", "jobs", "cores", "omp", "expected"),
    [
        (3, 1, 1, None, 1), (3, 1, 2, None, 2), (3, 1, 8, None, 3),
        # 0: two, or one in each of several jobs
        (0, 1, 8, None, 2), (0, 1, 1, None, 1), (0, 2, 8, None, 1), (0, 8, 2, None, 1),
        (0, 1, 8, "1", 1), (0, 1, 8, "4", 2), (0, 2, 8, "4", 1),
        (8, 1, 8, "4", 4), (8, 1, 2, "4", 2), (8, 1, 8, "4,2", 4), (2, 1, 8, " 1 ", 1),
        (4, 2, 8, None, 4), (4, 4, 8, None, 2), (4, 2, 8, "3", 3), (2, 3, 2, None, 1),
        # what is no number bounds nothing
        (8, 1, 8, "", 8), (8, 1, 8, "many", 8), (8, 1, 8, "0", 8), (8, 1, 8, "-1", 8),
    ],
)  # fmt: skip
def test_threads_are_bounded(machine, wanted, jobs, cores, omp, expected):
    machine(cores, omp)
    assert threads.num_threads(wanted, jobs) == expected
    if jobs == 1:
        before = torch.get_num_threads()
        try:
            threads.use_threads(wanted)
            assert torch.get_num_threads() == expected
        finally:
            torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("wanted", "jobs", "cores", "omp", "said"),
    [
        (11, 1, 3, None, "runtime.threads is 11, but usable cores are 3; taking 3"),
        (12, 2, 6, None, "runtime.threads is 12, but usable cores are 6 for 2 jobs; taking 3"),
        (13, 1, 6, "5", "runtime.threads is 13, but OMP_NUM_THREADS is 5; taking 5"),
        (3, 1, 6, "5", None),
        (0, 1, 1, None, None),
        (0, 1, 6, "1", None),
    ],
)
def test_a_number_of_threads_above_the_bound_is_named_once(
    machine, caplog, wanted, jobs, cores, omp, said
):
    machine(cores, omp)
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            threads.num_threads(wanted, jobs)
    assert [record.message for record in caplog.records] == ([said] if said else [])


@pytest.mark.parametrize(
    ("cores", "wanted", "each", "expected"),
    [(2, 2, 2, 1), (2, 2, 1, 2), (16, 4, 2, 4), (16, 20, 2, 8), (1, 4, 2, 1)],
)
def test_processes_and_their_threads_fit_the_cores(monkeypatch, cores, wanted, each, expected):
    monkeypatch.setattr(threads, "num_cores", lambda: cores)
    assert threads.num_processes(wanted, each) == expected


def write(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        # version 2: the group itself, one above it, none
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
          "sys/fs/cgroup/a/cpu.max": "400000 100000\n"}, 4.0),
        ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "max 100000\n"}, float("inf")),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "20000 10000\n"}, 2.0),
        # version 1, in a container that shows its own group as the top, without a quota
        ({"proc/self/cgroup": "5:cpu,cpuacct:/docker/7f\n",
          "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "300000\n",
          "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n"}, 3.0),
        ({"proc/self/cgroup": "2:memory:/\n1:cpu:/x\n",
          "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "50000\n",
          "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n"}, 0.5),
        ({"proc/self/cgroup": "1:cpu:/\n0::/\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
          "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, float("inf")),
        # neither, or something else
        ({}, float("inf")),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "what\n"}, float("inf")),
    ],
)  # fmt: skip
def test_cpu_quotas_of_both_versions_are_read(tmp_path, files, cores):
    write(tmp_path, files)
    assert cpu_quota(tmp_path) == cores


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/memory.max": "1073741824\n"}, 2**30),
        ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/memory.max": "max\n"}, float("inf")),
        ({"proc/self/cgroup": "4:memory:/a/b\n",
          "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "2147483648\n"}, 2**31),
        ({}, float("inf")),
    ],
)  # fmt: skip
def test_memory_limits_of_both_versions_are_read(tmp_path, files, expected):
    write(tmp_path, files)
    assert memory_limit(tmp_path) == expected


GIB = 2**30


@pytest.mark.parametrize(
    ("cores", "free", "limit", "sets", "expected"),
    [
        (2, 64 * GIB, float("inf"), [], 2),
        (1, 64 * GIB, float("inf"), [], 1),
        (16, 64 * GIB, float("inf"), [], 4),  # runs
        (3, 64 * GIB, float("inf"), [], 3),
        (16, 5 * GIB, float("inf"), [], 2),
        (16, 64 * GIB, 3 * GIB, [], 1),
        (16, GIB // 2, float("inf"), [], 1),
        (4, 64 * GIB, float("inf"), ["runtime.threads=2"], 2),
        (4, 64 * GIB, float("inf"), ["runtime.threads=0"], 4),
    ],
)
def test_runs_side_by_side_have_a_core_and_memory_each(
    machine, monkeypatch, tiny_toml, cores, free, limit, sets, expected
):
    machine(cores)
    monkeypatch.setattr(threads, "memory_limit", lambda: limit)
    memory = psutil.virtual_memory()._replace(available=free)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    assert default_jobs(load_sweep(tiny_toml, ["model.device=cpu", *sets])) == expected


def test_a_gpu_has_one_run_at_a_time(machine, monkeypatch, tiny_toml):
    machine(16)
    monkeypatch.setattr("airllm.models.device.resolve_device", lambda name: torch.device("cuda"))
    assert default_jobs(load_sweep(tiny_toml)) == 1


@pytest.mark.parametrize(("omp", "expected"), [(None, 2), ("1", 1)])
def test_the_summary_has_the_number_that_was_used(machine, tiny_toml, tmp_path, omp, expected):
    machine(4, omp)
    before = torch.get_num_threads()
    try:
        run_simulation(load_experiment(tiny_toml, ["runtime.threads=0"]), tmp_path)
    finally:
        torch.set_num_threads(before)
    assert read_summary(tmp_path)["threads"] == expected


def test_each_job_has_one_thread_unless_told_otherwise(machine, tiny_toml, tmp_path):
    machine(4)
    axes = {"runtime.threads": [0, 2, 9], "policy.name": "uniform", "channel.snr_db": 0}
    _, errors = run_sweep(load_sweep(tiny_toml, axes=axes), tmp_path, jobs=2)
    assert errors == {}
    trials = [folder for folder in sorted(tmp_path.iterdir()) if folder.is_dir()]
    used = [read_summary(folder)["threads"] for folder in trials]
    written = [load_experiment(folder / "config.toml").runtime.threads for folder in trials]
    assert used == written == [1, 2, 2]
    # Nor does one that is left alone get the others' cores, for other last digits.
    (trials[0] / "summary.json").unlink()
    _, errors = run_sweep(load_sweep(tiny_toml, axes=axes), tmp_path, jobs=2)
    assert errors == {}
    assert read_summary(trials[0])["threads"] == 1
