"""`airllm info`: what is here, what is not, and what to do about it; it never fails itself."""

import builtins

import pytest

from experiments.cli import info


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(info, "_cached", lambda kind: [])


def test_versions_device_models_and_data_are_named():
    found = dict(info.describe())
    assert found["torch"] == info.metadata.version("torch")
    assert "CPU cores" in found["device"]
    assert found["precision"].split(":")[0] in ("bf16", "fp32")
    assert "hub switched off" in found["model <hugging face id>"]
    assert found["data docstrings"].startswith("here, read from")


def test_what_is_absent_has_a_remedy(monkeypatch):
    monkeypatch.setattr("airllm.models.sources.minilm_source", lambda: None)
    monkeypatch.setattr(info, "find_spec", lambda name: None)
    monkeypatch.setattr(info, "PACKAGES", ("no-such-package",))
    found = dict(info.describe())
    assert "airllm-sim[offline]" in found["model minilm"]
    assert "airllm-sim[hub]" in found["data sst2, <hugging face id>"]
    assert found["no-such-package"] == "not installed; run `make setup`"


def test_a_corpus_without_its_packages_is_not_called_there(monkeypatch):
    real = info._version
    monkeypatch.setattr(info, "_version", lambda p: "not installed" if p == "numpy" else real(p))
    assert dict(info.describe())["data docstrings"].startswith("lacks numpy; pip install")


def test_a_model_folder_that_is_not_usable_is_said_not_raised(monkeypatch, tmp_path):
    monkeypatch.setenv("AIRLLM_MINILM", str(tmp_path))
    assert "not usable: AIRLLM_MINILM must name a folder" in dict(info.describe())["model minilm"]


def test_without_torch_the_rest_is_still_told(monkeypatch):
    real = builtins.__import__

    def refuse(name, *arguments, **options):
        if name == "torch":
            raise ImportError("No module named 'torch'")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    found = dict(info.describe())
    assert found["device"] == "cannot be told: No module named 'torch'; run `make setup`"
    assert "data docstrings" in found
