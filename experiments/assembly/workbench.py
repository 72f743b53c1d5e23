"""From a configuration to its parts; what is dear is made once and shared by a sweep."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from airllm.data.complexity import oov_rate, reference_vocabulary, token_entropy
from airllm.data.datasets import DataConfig, TextDataset, TextSplits, load_splits
from airllm.data.partition import Partition, partition
from airllm.lora.adapter import Adapter
from airllm.lora.evaluation import evaluate
from airllm.lora.prefix_sharing import evaluate_many
from airllm.models.base import BaseModel, ModelConfig
from airllm.models.batches import Examples, tokenize
from airllm.models.head import Head, train_head
from airllm.models.sources import load_base
from airllm.policies.base import RankPolicy
from airllm.policies.registry import make_policy
from channel.cell import Cell
from channel.config import ChannelConfig
from cloud.training.adalora import train_adalora
from cloud.training.lora import TrainingConfig, Trajectory, probe_texts, train_lora
from edge.device import DeviceProfile
from experiments.assembly.threads import use_determinism, use_threads
from experiments.config.plugins import is_own, make_own
from experiments.config.schema import ExperimentConfig

_HEAD_STREAM, _EXAMPLES_STREAM = 40, 41

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Key:
    """What a workbench depends on: everything but channel, policy, payload, reward, federated."""

    mode: str
    model: ModelConfig
    data: DataConfig
    training: TrainingConfig
    seed: int
    rounds: int
    num_devices: int
    examples_per_device: int
    dtype: torch.dtype
    """of full precision, torch's default"""


@lru_cache(maxsize=1)
def _base(model: ModelConfig, seed: int, num_classes: int, dtype: torch.dtype) -> BaseModel:
    return load_base(model, seed=seed, num_classes=num_classes)


@lru_cache(maxsize=2)
def _workbench(key: _Key) -> Workbench:
    return Workbench(key)


def workbench_key(config: ExperimentConfig) -> _Key:
    """Runs of which this is equal share a workbench, and so a trained master."""
    return _Key(
        config.mode, config.model, config.data, config.training, config.seed, config.rounds,
        config.num_devices, config.examples_per_device, torch.get_default_dtype(),
    )  # fmt: skip


def workbench_for(config: ExperimentConfig) -> Workbench:
    """The workbench of a configuration; the same object for runs that can share one."""
    use_threads(config.runtime.threads)
    use_determinism(config.runtime.deterministic)
    return _workbench(workbench_key(config))


def make_cell(config: ChannelConfig, num_devices: int, *, seed: int) -> Cell:
    """The cell of a run, with the channel model of one's own if the configuration names one."""
    model = None
    if config.model:
        model = make_own("channel", config.model, config=config, num_devices=num_devices, seed=seed)
    return Cell(config, num_devices, seed=seed, model=model)


class Workbench:
    """Base model, text, head and master trajectories, each made when first asked for."""

    def __init__(self, key: _Key) -> None:
        self.key = key
        self._texts: dict[int, tuple[Examples, float, float]] = {}
        self._training_texts: dict[int, tuple[Examples, float, float]] = {}
        self._whole: dict[int, tuple[Adapter, float, float]] = {}

    @cached_property
    def base(self) -> BaseModel:
        # A pretrained model does not depend on the seed: one copy serves them all.
        is_tiny = self.key.model.name.startswith("tiny:")
        # Where devices train it, the head is one more projection.
        is_trained = self.key.mode == "federated" and self.key.model.task == "classify"
        num_classes = len(self._loaded.train.label_names) if is_trained else 0
        seed = self.key.seed if is_tiny else 0
        return _base(self.key.model, seed, num_classes, self.key.dtype)

    @cached_property
    def _loaded(self) -> TextSplits:
        source, own = self.key.data.source, None
        if is_own("data", source):
            own = make_own("data", source, seed=self.key.seed)
        return load_splits(self.key.data, seed=self.key.seed, own=own)

    @cached_property
    def splits(self) -> TextSplits:
        """All texts of which the model has something to learn."""
        loaded = self._loaded
        return replace(
            loaded, train=self._usable(loaded.train), evaluation=self._usable(loaded.evaluation)
        )

    def _usable(self, text: TextDataset) -> TextDataset:
        """Texts of a token at least, or of two where the second is predicted from the first."""
        least = 2 if self.key.model.task == "causal" else 1
        tokens = tokenize(self.base, text.texts)
        kept = [i for i, ids in enumerate(tokens) if len(ids) >= least]
        if len(kept) == len(text):
            return text
        data = self.key.data
        key, source = "data.source", data.source
        if text is self._loaded.evaluation and data.eval_source:
            key, source = "data.eval_source", data.eval_source
        if not kept:
            raise ValueError(
                f"{key} {source!r} gives no text that model.task {self.key.model.task!r} can "
                f"use: none of its {len(text)} has {least} token{'s' * (least > 1)} by the "
                f"tokenizer of {self.key.model.name!r}; give longer texts"
            )
        logger.warning(
            "%s %r: %d of %d texts have fewer than %d tokens and are left out",
            key, source, len(text) - len(kept), len(text), least,
        )  # fmt: skip
        return text.take(kept)

    @cached_property
    def training_set(self) -> Examples:
        train = self.splits.train
        return Examples(tokenize(self.base, train.texts), train.labels.tolist())

    @cached_property
    def _head_index(self) -> NDArray[np.int64]:
        """What labelled text there was at deployment."""
        count = len(self.splits.train)
        if not self.key.training.head_examples:
            return np.arange(count)
        key = np.random.SeedSequence(self.key.seed, spawn_key=(_HEAD_STREAM,))
        return np.random.default_rng(key).permutation(count)[: self.key.training.head_examples]

    @cached_property
    def cloud_set(self) -> Examples:
        """The cloud's own text: all of it in remote mode, that of the head in federated mode."""
        if self.key.mode == "remote":
            return self.training_set
        return self.training_set.take(self._head_index)

    @cached_property
    def training_shares(self) -> list[NDArray[np.int64]]:
        """[devices] indices of the text that each device trains on (federated mode)."""
        count, devices = len(self.splits.train), self.key.num_devices
        rest = np.setdiff1d(np.arange(count), self._head_index)
        if len(rest) < devices:
            raise ValueError(
                f"training.head_examples {self.key.training.head_examples} leaves {len(rest)} of "
                f"{count} training texts for num_devices {devices} to share; set "
                f"training.head_examples to at most {count - devices}, or give more text"
                if count > devices
                else f"{count} training texts are too few for training.head_examples and "
                f"num_devices {devices}; give more text"
            )
        return [rest[share] for share in self._partition(self.splits.train.take(rest), None)]

    @cached_property
    def head(self) -> Head | None:
        """Trained once on the frozen base, before round 1, on what was there at deployment."""
        if self.key.model.task == "causal":
            return None
        training, data = self.key.training, self.training_set
        index = self._head_index
        return train_head(
            self.base,
            [data.ids[i] for i in index],
            [data.labels[i] for i in index],
            num_classes=len(self.splits.train.label_names),
            steps=training.head_steps,
            learning_rate=training.head_learning_rate,
            weight_decay=training.head_weight_decay,
            batch_size=training.head_batch_size,
            seed=self.key.seed,
        )

    @cached_property
    def shares(self) -> list[NDArray[np.int64]]:
        """[devices] indices of each device's examples in the evaluation text."""
        # Devices of federated mode are measured on the same mix, whatever they train on: what
        # counts is what all of them have learned together.
        count = len(self.splits.evaluation)
        if count < self.key.num_devices:
            raise ValueError(
                f"{count} evaluation texts cannot be shared by {self.key.num_devices} devices; "
                f"make num_devices smaller, or the evaluation text larger (data.eval_source, "
                f"data.eval_fraction, data.max_eval)"
            )
        shares = self._partition(self.splits.evaluation, "iid" if self._is_federated else None)
        limit = self.key.examples_per_device
        if not limit:
            return shares
        if (least := min(len(share) for share in shares)) < limit:
            logger.warning(
                "devices have %d texts each to measure on, not examples_per_device %d", least, limit
            )
        rng = np.random.SeedSequence(self.key.seed, spawn_key=(_EXAMPLES_STREAM,))
        children = rng.spawn(len(shares))
        return [
            np.sort(np.random.default_rng(c).permutation(share)[:limit])
            for c, share in zip(children, shares, strict=True)
        ]

    def _partition(self, text: TextDataset, kind: Partition | None) -> list[NDArray[np.int64]]:
        """[devices] indices of each device's part, by the configured kind unless one is given."""
        data, complexity = self.key.data, None
        kind = kind or data.partition
        if kind == "complexity":
            complexity = [
                oov_rate([words], self.vocabulary) + token_entropy([ids])
                for words, ids in zip(text.texts, tokenize(self.base, text.texts), strict=True)
            ]
        return partition(
            text.labels,
            num_devices=self.key.num_devices,
            kind=kind,
            alpha=data.dirichlet_alpha,
            complexity=complexity,
            seed=self.key.seed,
        )

    @property
    def _is_federated(self) -> bool:
        return self.key.mode == "federated"

    @cached_property
    def vocabulary(self) -> frozenset[str]:
        return reference_vocabulary(self.splits.train.texts)

    def text_of(self, device: int) -> Examples:
        """A device's own examples."""
        own = self.splits.evaluation.take(self.shares[device])
        return Examples(tokenize(self.base, own.texts), own.labels.tolist())

    def profile(self, device: int, adapter_rank: int) -> DeviceProfile:
        """What one device is: its text, and how complex that is."""
        if device not in self._texts:
            own = self.splits.evaluation.take(self.shares[device])
            text = self.text_of(device)
            self._texts[device] = (
                text,
                token_entropy(text.ids),
                oov_rate(own.texts, self.vocabulary),
            )
        examples, entropy, oov = self._texts[device]
        return DeviceProfile(
            device=device,
            entropy=entropy,
            oov_rate=oov,
            num_examples=len(self.shares[device]),
            examples=examples,
            adapter_rank=adapter_rank,
        )

    def training_text(self, device: int) -> tuple[Examples, float, float]:
        """What a device trains on, its entropy and its OOV rate (federated mode)."""
        if device not in self._training_texts:
            share = self.training_shares[device]
            own, text = self.training_set.take(share), self.splits.train.take(share)
            self._training_texts[device] = (
                own,
                token_entropy(own.ids),
                oov_rate(text.texts, self.vocabulary),
            )
        return self._training_texts[device]

    @cached_property
    def lora_trajectory(self) -> Trajectory:
        logger.info("training the master adapter (LoRA, rank %d)", self.key.training.r_max)
        return train_lora(
            self.base, self.head, self.training_set, self.key.training,
            num_rounds=self.key.rounds, seed=self.key.seed,
        )  # fmt: skip

    @cached_property
    def adalora_trajectory(self) -> Trajectory:
        logger.info("training the master adapter (AdaLoRA)")
        return train_adalora(
            self.base, self.head, self.training_set, self.key.training,
            num_rounds=self.key.rounds, seed=self.key.seed,
        )  # fmt: skip

    def probe_texts(self, round_index: int, num_devices: int, num_adapters: int) -> list[Examples]:
        """The cloud's texts on which a round's updates are probed, in parts."""
        return probe_texts(
            self.cloud_set, self.key.training, seed=self.key.seed,
            round_index=round_index, num_devices=num_devices, num_adapters=num_adapters,
        )  # fmt: skip

    def whole(self, adapter: Adapter) -> tuple[float, float]:
        """(loss, accuracy), mean over the devices, that an adapter would give if all of it came."""
        if id(adapter) not in self._whole:
            each = [
                evaluate(self.base, self.head, adapter, self.profile(d, 1).examples)
                for d in range(self.key.num_devices)
            ]
            if self._is_federated:
                self._whole.clear()  # every run has a global adapter of its own
            self._whole[id(adapter)] = (
                adapter,  # kept, so that its id stays its own
                float(np.mean([m.loss for m in each])),
                float(np.mean([m.accuracy for m in each])),
            )
        return self._whole[id(adapter)][1:]

    def losses(
        self, round_index: int, device: int, adapters: Sequence[Adapter]
    ) -> NDArray[np.float64]:
        """[adapters] mean losses on a device's own text."""
        examples = self.profile(device, 1).examples
        return np.array([m.loss for m in evaluate_many(self.base, self.head, adapters, examples)])

    def policy(self, config: ExperimentConfig, *, seed: int) -> RankPolicy:
        """The policy that the configuration names, the project's or one's own."""
        depths, kinds = [s.depth for s in self.base.specs], [s.kind for s in self.base.specs]
        if is_own("policy", config.policy.name):
            own: RankPolicy = make_own(
                "policy", config.policy.name, depths=depths, kinds=kinds,
                r_max=config.training.r_max, num_devices=config.num_devices,
                num_rounds=config.rounds, seed=seed,
            )  # fmt: skip
            return own
        return make_policy(
            config.policy, num_projections=len(self.base.specs), depths=depths, kinds=kinds,
            r_max=config.training.r_max, seed=seed, losses=self.losses,
        )  # fmt: skip
