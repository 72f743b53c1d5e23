"""Cores are never shared out twice."""

import pytest
import torch

from experiments.assembly import threads


def test_cores_are_counted_where_affinity_is_unknown(monkeypatch):
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    assert threads.num_cores() >= 1


@pytest.mark.parametrize(("cores", "expected"), [(1, 1), (2, 2), (8, 3)])
def test_torch_gets_no_more_threads_than_there_are_cores(monkeypatch, cores, expected):
    monkeypatch.setattr(threads, "num_cores", lambda: cores)
    before = torch.get_num_threads()
    try:
        threads.use_threads(3)
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("cores", "wanted", "each", "expected"),
    [(2, 2, 2, 1), (2, 2, 1, 2), (16, 4, 2, 4), (16, 20, 2, 8), (1, 4, 2, 1)],
)
def test_processes_and_their_threads_fit_the_cores(monkeypatch, cores, wanted, each, expected):
    monkeypatch.setattr(threads, "num_cores", lambda: cores)
    assert threads.num_processes(wanted, each) == expected
