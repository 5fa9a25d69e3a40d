"""The one checkpoint of a running trial, in a folder that belongs to its newest attempt."""

import io
import uuid
from pathlib import Path

import torch

from trainables.files import write_whole


class Superseded(RuntimeError):
    """A newer attempt at the same trial has taken the folder over."""


class CheckpointFolder:
    """Saves and loads a trial's state; only the attempt that opened the folder last may save.

    A worker can outlive its driver by some seconds, and a retried trial can briefly run twice:
    the older attempt must not overwrite the newer one's state.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.attempt = uuid.uuid4().hex
        write_whole(folder / "attempt", self.attempt.encode())

    @property
    def state_file(self) -> Path:
        return self.folder / "state.pt"

    @property
    def weights_file(self) -> Path:
        return self.folder / "weights.safetensors"

    def require_ownership(self) -> None:
        """Raises:
        Superseded: If a newer attempt has opened the folder, or the trial was cleaned away.
        """
        try:
            owner = (self.folder / "attempt").read_text()
        except FileNotFoundError:
            owner = "nobody"
        if owner != self.attempt:
            raise Superseded(f"{self.folder} belongs to attempt {owner}, not to {self.attempt}")

    def save(self, state: dict[str, object]) -> None:
        self.require_ownership()
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_whole(self.state_file, buffer.getvalue())

    def load(self, device: torch.device) -> dict[str, object] | None:
        if not self.state_file.exists():
            return None
        return torch.load(self.state_file, map_location=device, weights_only=True)
