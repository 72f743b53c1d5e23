"""Which adapter each device has, as the cloud knows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from airllm.lora.adapter import Adapter
from airllm.lora.payload import decode
from airllm.models.projections import ProjectionSpec


class AdapterLedger:
    """Applies to the bytes that each device confirms the rule that the device applies to them.

    So device and cloud hold the same, to the last bit. The number of the update that a device
    reports says where it stands.
    """

    def __init__(
        self,
        specs: Sequence[ProjectionSpec],
        num_devices: int,
        *,
        adapter_rank: int,
        shared_down: Sequence[Tensor] | None,
    ) -> None:
        """``adapter_rank`` bounds what a device accumulates; ``shared_down`` are frozen factors
        that all have."""
        self._specs, self._adapter_rank, self._shared_down = specs, adapter_rank, shared_down
        self._adapters = [Adapter.zero(specs) for _ in range(num_devices)]
        self._numbers = [0] * num_devices
        self._sent = [b""] * num_devices

    def adapter(self, device: int) -> Adapter:
        """What a device holds."""
        return self._adapters[device]

    def is_fresh(self, device: int) -> bool:
        """The device is to be started afresh: what it holds is not known."""
        return self._numbers[device] < 0

    def sent(self, device: int) -> bytes:
        """The payload that was sent to a device last."""
        return self._sent[device]

    def note_sent(self, device: int, payload: bytes) -> None:
        """Remember a payload until it is confirmed."""
        self._sent[device] = payload

    def confirm(self, device: int, payload: bytes) -> None:
        """A device has installed a payload."""
        update = decode(payload, self._specs, shared_down=self._shared_down)
        self._adapters[device] = update.onto(self._adapters[device], self._adapter_rank)
        self._numbers[device] = update.number

    def settle(self, device: int, number: int) -> None:
        """A device reports the number of the update that it installed last.

        Where that is not the one noted here, it has installed what was sent last, and its answer
        was lost; or it has lost its state, and is to be started afresh.
        """
        if number == self._numbers[device]:
            return
        payload = self._sent[device]
        shared = self._shared_down
        if payload and decode(payload, self._specs, shared_down=shared).number == number:
            self.confirm(device, payload)
            return
        self._adapters[device], self._numbers[device] = Adapter.zero(self._specs), -1

    def state_dict(self) -> dict[str, Any]:
        """All of it, for a checkpoint."""
        return {
            "adapters": [adapter.state_dict() for adapter in self._adapters],
            "numbers": list(self._numbers),
            "sent": list(self._sent),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self._adapters = [Adapter.of_state(adapter) for adapter in state["adapters"]]
        self._numbers, self._sent = list(state["numbers"]), list(state["sent"])
