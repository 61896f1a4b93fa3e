"""Who multiplies and shares gradients: DeepSpeed, or torch's own DistributedDataParallel. The loop knows neither.

An engine is given a `Trainee` on every worker after torch.distributed has been initialised.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ray_profile.train.batch import Batch
from ray_profile.train.model import Trainee
from ray_profile.train_config import Train

Tensors = dict[str, torch.Tensor]
TAG = "state"  # DeepSpeed's name for what is in a checkpoint
WORLD = "world.json"


class Engine(Protocol):
    """One worker's part of a training run."""

    rank: int
    world: int
    device: torch.device

    def loss(self, batch: Batch) -> tuple[torch.Tensor, Tensors]:
        """The loss of a batch and its parts (see `Trainee.forward`)."""
        ...

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """Add to the gradients; `last` of the batches of a step."""
        ...

    def step(self, learning_factor: float) -> float:
        """Move the weights, with the learning rates times a factor; gives the gradient's norm before clipping."""
        ...

    def scores(self, batch: Batch) -> Tensors:
        """`Trainee.scores`, without gradients or dropout."""
        ...

    def weights(self) -> Tensors | None:
        """All weights in float32 on worker 0, None elsewhere; to be called by all."""
        ...

    def save(self, folder: Path) -> None:
        """Write this worker's part of a checkpoint."""
        ...

    def load(self, folder: Path) -> None:
        """Go on where a checkpoint, also one of another number of workers, was written."""
        ...


def make(trainee: Trainee, settings: Train, device: torch.device) -> Engine:
    """The engine that `[train]` names."""
    made = DeepSpeedEngine if settings.engine == "deepspeed" else TorchEngine
    return made(trainee, settings, device)


def parameter_groups(trainee: Trainee, settings: Train) -> list[dict[str, Any]]:
    """Encoder and heads, each with and without weight decay (none on biases and norms), with their learning rates.

    Frozen parameters are left out.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in trainee.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name.startswith("encoder."), parameter.dim() > 1), []).append(parameter)
    rates = {True: settings.learning_rate, False: settings.head_learning_rate}
    return [
        {
            "params": found,
            "lr": rates[of_encoder],
            "full_lr": rates[of_encoder],
            "weight_decay": settings.weight_decay if decays else 0.0,
        }
        for (of_encoder, decays), found in groups.items()
    ]


def _copied(trainee: Trainee) -> Tensors:
    return {name: value.detach().float().cpu() for name, value in trainee.state_dict().items()}


def _set_rates(groups: list[dict[str, Any]], factor: float) -> None:
    for group in groups:
        group["lr"] = group["full_lr"] * factor


class TorchEngine:
    """`Engine` by DistributedDataParallel: float32 weights, bf16 products (autocast)."""

    def __init__(self, trainee: Trainee, settings: Train, device: torch.device) -> None:
        self.rank, self.world, self.device = dist.get_rank(), dist.get_world_size(), device
        self._trainee = trainee.to(device)
        self._model = DistributedDataParallel(self._trainee)
        self._optimizer = torch.optim.AdamW(parameter_groups(trainee, settings))
        self._bf16 = settings.dtype == "bf16"
        self._clip = settings.gradient_clip
        self._parts = settings.gradient_accumulation

    def loss(self, batch: Batch) -> tuple[torch.Tensor, Tensors]:
        """See `Engine`."""
        self._model.train()  # type: ignore[no-untyped-call]
        with self._autocast():
            found: tuple[torch.Tensor, Tensors] = self._model(batch.to(self.device))
        return found

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """See `Engine`. Workers exchange gradients at the last batch of a step only."""
        self._model.require_backward_grad_sync = last
        (loss / self._parts).backward()  # type: ignore[no-untyped-call]

    def step(self, learning_factor: float) -> float:
        """See `Engine`."""
        norm = nn.utils.clip_grad_norm_(self._trainee.parameters(), self._clip)
        _set_rates(self._optimizer.param_groups, learning_factor)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return float(norm)

    @torch.no_grad()
    def scores(self, batch: Batch) -> Tensors:
        """See `Engine`."""
        self._trainee.eval()
        with self._autocast():
            return self._trainee.scores(batch.to(self.device))

    def weights(self) -> Tensors | None:
        """See `Engine`."""
        return None if self.rank else _copied(self._trainee)

    def save(self, folder: Path) -> None:
        """See `Engine`: worker 0 has all there is."""
        if self.rank == 0:
            state = {"model": self._trainee.state_dict(), "optimizer": self._optimizer.state_dict()}
            torch.save(state, folder / f"{TAG}.pt")  # of this run, for this run; read back as tensors only

    def load(self, folder: Path) -> None:
        """See `Engine`."""
        state = torch.load(folder / f"{TAG}.pt", map_location=self.device, weights_only=True)
        self._trainee.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])

    def _autocast(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16) if self._bf16 else nullcontext()


class DeepSpeedEngine:
    """`Engine` by DeepSpeed: ZeRO shards the optimizer's state (1), gradients (2) and weights (3) over the workers."""

    def __init__(self, trainee: Trainee, settings: Train, device: torch.device) -> None:
        self.rank, self.world, self.device = dist.get_rank(), dist.get_world_size(), device
        if device.type == "cpu":
            os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed
        from deepspeed.ops import __compatible_ops__

        # An operator for shared memory that training never uses, and that takes half a minute to compile.
        __compatible_ops__["deepspeed_shm_comm"] = False
        self._settings, self._trainee = settings, trainee
        self._groups = parameter_groups(trainee, settings)
        self._config = deepspeed_config(settings)
        self._stage = settings.deepspeed.zero_stage
        self._deepspeed = deepspeed
        self._engine = self._made(self._config)

    def _made(self, config: dict[str, Any]) -> Any:
        # torch's AdamW: DeepSpeed's own is compiled when it is first used.
        optimizer = torch.optim.AdamW(self._groups)
        engine, *_ = self._deepspeed.initialize(model=self._trainee, optimizer=optimizer, config=config)
        return engine

    def loss(self, batch: Batch) -> tuple[torch.Tensor, Tensors]:
        """See `Engine`."""
        self._engine.train()
        found: tuple[torch.Tensor, Tensors] = self._engine(batch.to(self.device))
        return found

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """See `Engine`. DeepSpeed counts the batches of a step itself and exchanges gradients at the last."""
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss)
        if not last:
            self._engine.step()

    def step(self, learning_factor: float) -> float:
        """See `Engine`."""
        _set_rates(self._engine.optimizer.param_groups, learning_factor)
        self._engine.step()
        norm = self._engine.get_global_grad_norm()
        return float(norm) if norm is not None else 0.0

    @torch.no_grad()
    def scores(self, batch: Batch) -> Tensors:
        """See `Engine`."""
        self._engine.eval()
        with self._whole():
            return self._trainee.scores(batch.to(self.device))

    def weights(self) -> Tensors | None:
        """See `Engine`."""
        with self._whole():
            return None if self.rank else _copied(self._trainee)

    def save(self, folder: Path) -> None:
        """See `Engine`."""
        self._engine.save_checkpoint(str(folder), tag=TAG, exclude_frozen_parameters=self._settings.peft is not None)
        if self.rank == 0:
            (folder / WORLD).write_text(json.dumps({"world": self.world}), encoding="utf-8")

    def load(self, folder: Path) -> None:
        """See `Engine`. Sharded state of another number of workers is first put together and cut anew."""
        written = json.loads((folder / WORLD).read_text(encoding="utf-8"))["world"]
        if written == self.world or self._stage == 0:
            self._engine.load_checkpoint(str(folder), tag=TAG, load_module_strict=self._settings.peft is None)
            return
        with _universal(folder) as converted:
            self._engine = self._made({**self._config, "checkpoint": {"load_universal": True}})
            self._engine.load_checkpoint(str(converted), tag=TAG)

    def _whole(self) -> Any:
        """All weights on every worker: ZeRO-3 keeps a part on each."""
        if self._stage < 3:
            return nullcontext()
        return self._deepspeed.zero.GatheredParameters(list(self._trainee.parameters()))


def deepspeed_config(settings: Train) -> dict[str, Any]:
    """What DeepSpeed is told: `[train.deepspeed]`'s own keys, and ours."""
    own: Mapping[str, Any] = settings.deepspeed.model_extra or {}
    zero = {"stage": settings.deepspeed.zero_stage, "stage3_gather_16bit_weights_on_model_save": True}
    return {
        **own,
        # Batches are filled by tokens, so their rows mean nothing here: it must only come out as a whole number.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": settings.gradient_accumulation,
        "gradient_clipping": settings.gradient_clip,
        "bf16": {"enabled": settings.dtype == "bf16"},
        "zero_optimization": {**own.get("zero_optimization", {}), **zero},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
    }


@contextmanager
def _universal(folder: Path) -> Iterator[Path]:
    """A checkpoint that any number of workers can load, in a folder for as long as it is needed."""
    with tempfile.TemporaryDirectory(prefix="universal-") as held:
        out = Path(held)
        command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
        folders = ["--input_folder", str(folder / TAG), "--output_folder", str(out / TAG)]
        subprocess.run([*command, *folders], check=True, capture_output=True)
        (out / "latest_universal").write_text(TAG, encoding="utf-8")
        dist.barrier()
        yield out
        dist.barrier()
