"""Who multiplies and shares gradients: DeepSpeed, or torch's own DistributedDataParallel. The loop knows neither.

An engine is given a `Trainee` on every worker after torch.distributed has been initialised.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ray_profile.train.batch import Batch
from ray_profile.train.model import Trainee
from ray_profile.train.parts import MOMENTS, WEIGHT, Part, fill, step_of, write
from ray_profile.train_config import Train

Tensors = dict[str, torch.Tensor]


class Engine(Protocol):
    """One worker's part of a training run."""

    rank: int
    world: int
    device: torch.device

    def loss(self, batch: Batch, last: bool) -> tuple[torch.Tensor, Tensors]:
        """The loss of a batch and its parts (see `Trainee.forward`); `last` of the batches of a step, on all workers.

        Whether workers will exchange gradients is decided here, for DDP prepares for it in its forward pass.
        """
        ...

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a loss, divided by `gradient_accumulation`, which also a shorter step is."""
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
        """Write this worker's part of a checkpoint, after a step."""
        ...

    def load(self, folder: Path) -> None:
        """Go on where a checkpoint, of any number of workers, was written. Raises `BuildFailed` where it is not whole.

        Frozen parameters are not in it: they are the base model's.
        """
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


def _trained(trainee: Trainee) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, each) for name, each in trainee.named_parameters() if each.requires_grad)


def _copied(trainee: Trainee) -> Tensors:
    return {name: value.detach().float().cpu() for name, value in trainee.state_dict().items()}


def _set_rates(optimizer: torch.optim.AdamW, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["full_lr"] * factor


def _steps(optimizer: torch.optim.AdamW) -> int:
    """Steps that were taken; at least one."""
    return int(next(iter(optimizer.state.values()))["step"])


def _begin_at(step: int, optimizer: torch.optim.AdamW, masters: Iterable[torch.Tensor]) -> None:
    """Give the tensors that the optimizer moves the state that they have after `step` steps, with moments to fill."""
    for master in masters:
        moments = {kind: torch.zeros_like(master) for kind in MOMENTS}
        optimizer.state[master] = {"step": torch.tensor(float(step)), **moments}


def _views(optimizer: torch.optim.AdamW, master: torch.Tensor, begin: int, size: int) -> Tensors:
    """Some neighbouring elements of a tensor that the optimizer moves, and of its moments."""
    state = optimizer.state[master]
    whole = {WEIGHT: master.detach(), **{kind: state[kind] for kind in MOMENTS}}
    return {kind: value.view(-1)[begin : begin + size] for kind, value in whole.items()}


class TorchEngine:
    """`Engine` by DistributedDataParallel: float32 weights, bf16 products (autocast)."""

    def __init__(self, trainee: Trainee, settings: Train, device: torch.device) -> None:
        self.rank, self.world, self.device = dist.get_rank(), dist.get_world_size(), device
        self._trainee = trainee.to(device)
        self._model = DistributedDataParallel(self._trainee)
        self._optimizer = torch.optim.AdamW(parameter_groups(trainee, settings))
        self._bf16 = settings.dtype == "bf16"
        self._clip = settings.gradient_clip
        self._batches = settings.gradient_accumulation

    def loss(self, batch: Batch, last: bool) -> tuple[torch.Tensor, Tensors]:
        """See `Engine`."""
        self._model.train()  # type: ignore[no-untyped-call]
        self._model.require_backward_grad_sync = last
        with self._autocast():
            found: tuple[torch.Tensor, Tensors] = self._model(batch.to(self.device))
        return found

    def backward(self, loss: torch.Tensor) -> None:
        """See `Engine`."""
        (loss / self._batches).backward()  # type: ignore[no-untyped-call]

    def step(self, learning_factor: float) -> float:
        """See `Engine`."""
        norm = nn.utils.clip_grad_norm_(self._trainee.parameters(), self._clip)
        _set_rates(self._optimizer, learning_factor)
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
            write(folder, 0, 1, _steps(self._optimizer), self._parts())

    def load(self, folder: Path) -> None:
        """See `Engine`."""
        _begin_at(step_of(folder), self._optimizer, (each for _, each in _trained(self._trainee)))
        fill(folder, self._parts())

    def _parts(self) -> Iterator[Part]:
        for name, each in _trained(self._trainee):
            yield Part(name, 0, _views(self._optimizer, each, 0, each.numel()))

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
        self._trainee, self._deepspeed = trainee, deepspeed
        self._stage = settings.deepspeed.zero_stage
        # torch's AdamW: DeepSpeed's own is compiled when it is first used.
        self._optimizer = torch.optim.AdamW(parameter_groups(trainee, settings))
        trained = [each for group in self._optimizer.param_groups for each in group["params"]]
        self._engine, *_ = deepspeed.initialize(
            model=trainee, optimizer=self._optimizer, config=deepspeed_config(settings)
        )
        if self._stage == 3 and trainee.masked is not None:
            # Its last layer is the embeddings' own weight, of which a worker has a part until somebody asks for it.
            words = trainee.encoder.get_input_embeddings().weight  # type: ignore[operator]
            deepspeed.zero.register_external_parameter(trainee.masked, words)
        # What the optimizer moves instead of the parameters: float32 twins, or flat ones of this worker's parts.
        self._masters: list[torch.Tensor] = (
            self._engine.optimizer.fp32_partitioned_groups_flat
            if self._stage == 3
            else [each for group in self._optimizer.param_groups for each in group["params"]]
        )
        self._twins = dict(zip(trained, self._masters, strict=True)) if self._stage == 0 else {}

    def loss(self, batch: Batch, last: bool) -> tuple[torch.Tensor, Tensors]:
        """See `Engine`."""
        self._engine.train()
        self._engine.set_gradient_accumulation_boundary(last)
        found: tuple[torch.Tensor, Tensors] = self._engine(batch.to(self.device))
        return found

    def backward(self, loss: torch.Tensor) -> None:
        """See `Engine`."""
        self._engine.backward(loss)

    def step(self, learning_factor: float) -> float:
        """See `Engine`."""
        norm = self._norm()
        _set_rates(self._optimizer, learning_factor)
        self._engine.step()
        return float(self._engine.get_global_grad_norm() if norm is None else norm)

    def _norm(self) -> torch.Tensor | None:
        """The gradient's norm where DeepSpeed clips by it and does not tell: float32 weights, wholly on each worker."""
        if self._stage or any(master is not each for each, master in self._twins.items()):
            return None
        return nn.utils.get_total_norm(each.grad for each in self._twins if each.grad is not None)

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
        writers = self.world if self._stage else 1  # without ZeRO worker 0 has all there is
        if self.rank < writers:
            write(folder, self.rank, writers, _steps(self._optimizer), self._parts())

    def load(self, folder: Path) -> None:
        """See `Engine`."""
        _begin_at(step_of(folder), self._optimizer, self._masters)
        fill(folder, self._parts())
        self._spread()

    def _parts(self) -> Iterator[Part]:
        """What this worker keeps of each parameter."""
        for name, each in _trained(self._trainee):
            master, begin, first, size = self._place(each)
            if size:
                yield Part(name, first, _views(self._optimizer, master, begin, size))

    def _place(self, parameter: nn.Parameter) -> tuple[torch.Tensor, int, int, int]:
        """(master, place in it, place in the parameter, elements) of this worker's part of a parameter."""
        if self._stage == 0:
            return self._twins[parameter], 0, 0, parameter.numel()
        if self._stage < 3:
            held: Any = parameter._hp_mapping  # type: ignore[attr-defined]
            if held is None:
                return self._masters[0], 0, 0, 0
            here, there = held.hp_fragment_address, held.lp_fragment_address
            return self._masters[held.param_group_index], here.start, there.start, there.numel
        zero, whole = self._engine.optimizer, int(parameter.ds_numel)  # type: ignore[attr-defined]
        group, begin, size = zero.grad_position[zero.get_param_id(parameter)]
        first = self.rank * size
        return self._masters[group], begin, first, max(0, min(size, whole - first))  # the last ones are padded

    @torch.no_grad()
    def _spread(self) -> None:
        """Give the model the weights of the masters."""
        zero = self._engine.optimizer
        if self._stage == 0:
            for parameter, master in self._twins.items():
                parameter.copy_(master)
        elif self._stage < 3:
            zero.update_lp_params()
        else:
            zero.checkpoint_event_prologue()
            for group in range(len(self._masters)):
                zero._reassign_or_swap_out_partitioned_parameters(group)
            zero.checkpoint_event_epilogue()

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
