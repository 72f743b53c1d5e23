"""A federation as Flower's users write it: its simulation runtime, and a client with PEFT.

In the manner of Flower's example of federated LoRA (flowertune-llm): at every message a client
loads the model and the tokenizer, wraps the model, takes in the factors that came, trains, and
gives its factors back; the server averages them (FedAvg). With ``is_cached`` a worker process keeps
tokenizer and wrapped model from one message to the next instead.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from time import process_time
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from torch import Tensor, nn
from torch.nn import functional as F

# Every linear layer of every block of a BERT, and not that of its pooler.
_TARGETS = r".*\.layer\.\d+\..*\b(query|key|value|dense)"
_kept: dict[str, tuple[Any, Any]] = {}  # of this process: tokenizer and model by folder


@dataclass(frozen=True, slots=True)
class Work:
    """What all clients do."""

    folder: str
    """of the model and its tokenizer"""
    texts: list[list[str]]
    """[devices] each one's own"""
    labels: list[list[int]]
    """[devices]"""
    batches: list[list[list[list[int]]]]
    """[devices, rounds, steps] places of a step's examples in a device's text"""
    num_classes: int
    max_length: int
    rank: int
    learning_rate: float


@lru_cache(maxsize=1)
def read_work(path: Path) -> Work:
    """Once in each process; a message brings no text."""
    return Work(**json.loads(path.read_text(encoding="utf-8")))


class Classifier(nn.Module):
    """A linear layer on mean features."""

    def __init__(self, encoder: Any, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.hidden_size, num_classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[:, :, None].to(hidden.dtype)
        return self.head((hidden * mask).sum(dim=1) / mask.sum(dim=1))


class Clock:
    """The process's seconds of a client, by what it does."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(("load", "wrap", "set", "train", "get"), 0.0)

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        started = process_time()
        yield
        self.seconds[name] = process_time() - started


def load(work: Work, clock: Clock) -> tuple[Any, Any]:
    """Tokenizer, and model with its LoRA layers and a head that is trained whole."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    with clock.of("load"):
        tokenizer = AutoTokenizer.from_pretrained(work.folder)
        encoder = AutoModel.from_pretrained(work.folder)
    with clock.of("wrap"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = LoraConfig(
            r=work.rank, lora_alpha=2 * work.rank, target_modules=_TARGETS, modules_to_save=["head"]
        )
        # In eval mode: the base's own dropout would make it other work than ours.
        model = get_peft_model(Classifier(encoder, work.num_classes), config).eval()
    return tokenizer, model


def answer(message: Message, context: Context, path: Path, is_cached: bool) -> Message:
    """One client's round."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    torch.set_num_threads(1)
    work, clock, device = read_work(path), Clock(), int(context.node_config["partition-id"])
    if is_cached:
        if work.folder not in _kept:
            _kept[work.folder] = load(work, clock)
        tokenizer, model = _kept[work.folder]
    else:
        tokenizer, model = load(work, clock)
    with clock.of("set"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arrays = message.content.array_records["arrays"]
        set_peft_model_state_dict(model, arrays.to_torch_state_dict())
    number = int(message.content.config_records["config"]["server-round"])  # type: ignore
    with clock.of("train"):
        trained = [p for p in model.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(trained, lr=work.learning_rate, weight_decay=0.0)
        for index in work.batches[device][number - 1]:
            batch = tokenizer(
                [work.texts[device][i] for i in index],
                padding=True, truncation=True, max_length=work.max_length, return_tensors="pt",
            )  # fmt: skip
            logits = model(batch["input_ids"], batch["attention_mask"])
            target = torch.tensor([work.labels[device][i] for i in index])
            loss = F.cross_entropy(logits, target)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    with clock.of("get"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = {k: v.contiguous() for k, v in get_peft_model_state_dict(model).items()}
        content = RecordDict({"arrays": ArrayRecord(state)})
    metrics: dict[str, Any] = {"num-examples": len(work.labels[device]), "loss": loss.item()}
    content["metrics"] = MetricRecord(metrics | {f"{k}_s": v for k, v in clock.seconds.items()})
    return Message(content, reply_to=message)


def run(
    path: Path, *, is_cached: bool, num_workers: int, gate: Callable[[dict[str, float]], None]
) -> None:
    """All rounds; after each one ``gate`` is given its clients' summed seconds, and awaited."""
    from peft import get_peft_model_state_dict

    from experiments.runtimes.flower_env import quieten

    quieten()
    from flwr.simulation import run_simulation

    logging.getLogger("flwr").setLevel(logging.WARNING)
    work = read_work(path)
    num_devices, num_rounds = len(work.texts), len(work.batches[0])

    class Gated(FedAvg):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            replies = list(replies)
            seconds: dict[str, float] = {}
            for reply in replies:
                for key, value in reply.content.metric_records["metrics"].items():
                    if key.endswith("_s"):
                        seconds[key[:-2]] = seconds.get(key[:-2], 0.0) + float(value)
            merged = super().aggregate_train(server_round, replies)
            if len(replies) != num_devices:
                raise RuntimeError(f"{len(replies)} of {num_devices} clients have answered")
            gate(seconds)
            return merged

    server, client = ServerApp(), ClientApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        state = get_peft_model_state_dict(load(work, Clock())[1])
        initial = ArrayRecord({k: v.contiguous() for k, v in state.items()})
        strategy = Gated(
            fraction_train=1.0, fraction_evaluate=0.0,
            min_train_nodes=num_devices, min_available_nodes=num_devices,
        )  # fmt: skip
        strategy.start(grid, initial, num_rounds=num_rounds)

    @client.train()
    def train(message: Message, context: Context) -> Message:
        return answer(message, context, path, is_cached)

    run_simulation(
        server, client, num_devices,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"address": "local", "num_cpus": num_workers, "log_to_driver": False},
        },
    )  # fmt: skip
