"""The one checkpoint of a running trial, in a place that belongs to its newest attempt."""

import io
import uuid
from pathlib import Path

import torch

from trainables.stores import store


class Superseded(RuntimeError):
    """A newer attempt at the same trial has taken its place over."""


class CheckpointFolder:
    """Saves and loads a trial's state; only the attempt that opened the place last may save.

    A worker can outlive its driver by some seconds, and a retried trial can briefly run twice:
    the older attempt must not overwrite the newer one's state.
    """

    def __init__(self, place: str | Path) -> None:
        """Args:
        place: A folder, or a URI; see stores.py.
        """
        self.place, self.store = place, store(place)
        self.attempt = uuid.uuid4().hex
        self.store.write("attempt", self.attempt.encode())

    def require_ownership(self) -> None:
        """Raises:
        Superseded: If a newer attempt has opened the place, or the trial was cleaned away.
        """
        owner = (self.store.read("attempt") or b"nobody").decode()
        if owner != self.attempt:
            raise Superseded(f"{self.place} belongs to attempt {owner}, not to {self.attempt}")

    def save(self, state: dict[str, object]) -> None:
        self.require_ownership()
        buffer = io.BytesIO()
        torch.save(state, buffer)
        self.store.write("state.pt", buffer.getvalue())

    def save_weights(self, weights: bytes) -> None:
        """The trained network's, as safetensors; the driver fetches those of front members."""
        self.require_ownership()
        self.store.write("weights.safetensors", weights)

    def load(self, device: torch.device) -> dict[str, object] | None:
        state = self.store.read("state.pt")
        return None if state is None else torch.load(io.BytesIO(state), map_location=device, weights_only=True)
