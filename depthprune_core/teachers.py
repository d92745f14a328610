"""A cache of the teacher's hidden states, shared by recoveries."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import safetensors.torch
import torch
from transformers import PreTrainedModel

from depthprune_core import checkpoints
from depthprune_core.anatomy import anatomy
from depthprune_core.decoder import Decoder
from depthprune_core.running import hidden_states
from depthprune_core.storage import write_atomically

LIMIT_BYTES = 2**31
_CHECKSUM_BYTES = 32  # a sha256 in front of each file's content
_NOT_OF_THE_NUMBERS = ("_name_or_path", "transformers_version", "architectures", "use_cache")


class TeacherStates:
    """A teacher's last hidden states: its layers run once per window, its head each time.

    So the result is exact. Recoveries with the same teacher and windows (other students, rates or
    seeds) share the states. Each window is computed separately, so its states do not depend on the
    order of requests. They take 4 d bytes per token in float32 (d: hidden size), at most
    LIMIT_BYTES in memory, and the same amount below `folder` if it is given; other windows are
    computed each time.

    On disk, a window's file is named after its tokens, in a folder named after the weights. A
    damaged file counts as missing; if the disk is full, no more files are written.
    """

    def __init__(self, teacher: PreTrainedModel, *, folder: Path | None = None) -> None:
        self.teacher = teacher
        self._kept: dict[str, torch.Tensor] = {}
        self._folder = folder / _name(teacher) if folder is not None else None
        on_disk = self._folder.glob("*") if self._folder is not None else ()
        self._disk_left = LIMIT_BYTES - sum(file.stat().st_size for file in on_disk)
        self._memory_left = LIMIT_BYTES

    def of(self, ids: torch.Tensor) -> tuple[Decoder, torch.Tensor]:
        """(batch, seq) token ids -> the teacher's parts and its states, (batch x seq, d)"""
        device = self.teacher.device
        return anatomy(self.teacher), torch.cat([self._row(row).to(device) for row in ids])

    @torch.no_grad()
    def _row(self, row: torch.Tensor) -> torch.Tensor:
        """One window's states.  (seq,) -> (seq, d)"""
        device = self.teacher.device
        half = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type)
        name = hashlib.sha256(row.cpu().numpy().tobytes() + f"{half}".encode()).hexdigest()
        if name in self._kept:
            return self._kept[name]
        states = self._from_disk(name)
        if states is None:
            states = hidden_states(anatomy(self.teacher), row[None].to(device))[0].cpu()
            self._to_disk(name, states)
        if states.nbytes <= self._memory_left:
            self._memory_left -= states.nbytes
            self._kept[name] = states
        return states

    def _from_disk(self, name: str) -> torch.Tensor | None:
        if self._folder is None or not (path := self._folder / name).is_file():
            return None
        data = path.read_bytes()
        checksum, content = data[:_CHECKSUM_BYTES], data[_CHECKSUM_BYTES:]
        if hashlib.sha256(content).digest() != checksum:
            return None
        return safetensors.torch.load(content)["states"]

    def _to_disk(self, name: str, states: torch.Tensor) -> None:
        if self._folder is None or states.nbytes > self._disk_left:
            return
        content = safetensors.torch.save({"states": states})
        try:
            write_atomically(self._folder / name, hashlib.sha256(content).digest() + content)
            self._disk_left -= len(content)
        except OSError:  # full, or read-only: the states are only computed again
            self._disk_left = 0


def _name(teacher: PreTrainedModel) -> str:
    """Names weights and config: another teacher's states are never read."""
    config = {k: v for k, v in teacher.config.to_dict().items() if k not in _NOT_OF_THE_NUMBERS}
    text = json.dumps(config, sort_keys=True, default=str)
    return hashlib.sha256(checkpoints.content(teacher) + text.encode()).hexdigest()[:16]
