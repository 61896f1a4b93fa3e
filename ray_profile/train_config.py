"""`[train]` and `[tune]`: how the encoder is fine-tuned. config.py reads them with all other sections."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from ray_profile.frozen import Frozen

OBJECTIVES = ("sentiment", "tags", "contrast", "mlm")

#: What `[train]` itself decides, so that a second word on it under `[train.deepspeed]` would be ignored or contradict.
_OURS = {
    "train_batch_size": "train.tokens_per_batch",
    "train_micro_batch_size_per_gpu": "train.tokens_per_batch",
    "gradient_accumulation_steps": "train.gradient_accumulation",
    "gradient_clipping": "train.gradient_clip",
    "bf16": "train.dtype",
    "fp16": "train.dtype",
    "optimizer": "train.learning_rate and train.weight_decay",
    "scheduler": "train.warmup_share",
    "activation_checkpointing": "train.activation_checkpointing",
    "zero_allow_untested_optimizer": "nothing: it is always on",
}


class DeepSpeed(Frozen):
    """`[train.deepspeed]`: `zero_stage`, and DeepSpeed's own keys, which pass through."""

    model_config = ConfigDict(frozen=True, extra="allow")

    zero_stage: int = Field(default=1, ge=0, le=3)

    @model_validator(mode="after")
    def _leaves_ours_alone(self) -> DeepSpeed:
        for key in self.model_extra or {}:
            if key in _OURS:
                raise ValueError(f"{key!r} is set by ray_profile itself ({_OURS[key]}); take it out")
        if "stage" in (self.model_extra or {}).get("zero_optimization", {}):
            raise ValueError("zero_optimization.stage is set by zero_stage; take it out")
        return self


#: Methods of the peft library that are not offered, and why.
_UNMERGED = {
    "adalora": "it moves ranks between layers by gradients that DeepSpeed does not leave where it looks for them",
    "prefix": "its vectors cannot be merged into the weights, so neither AutoModel nor build could load the model",
}


class Peft(Frozen):
    """`[train.peft]`: train few parameters beside frozen weights, merged into them when the model is exported."""

    method: Literal["lora", "adapter"] = "lora"  # adapter: IA3, which scales activations
    rank: int = Field(default=8, ge=1)  # of LoRA's updates, as the two below
    alpha: int = Field(default=16, gt=0)
    dropout: float = Field(default=0.05, ge=0, lt=1)

    @field_validator("method", mode="before")
    @classmethod
    def _can_be_merged(cls, value: Any) -> Any:
        if value in _UNMERGED:
            raise ValueError(f"{value!r} is not offered: {_UNMERGED[value]}; use 'lora' or 'adapter'")
        return value


class Track(Frozen):
    """`[train.track]`: where curves go besides the report."""

    tensorboard: bool = True
    wandb: bool = False
    mlflow: bool = False


class Augment(Frozen):
    """`[train.augment]`: noise on the training texts. All off by default."""

    word_dropout: float = Field(default=0.0, ge=0, lt=1)  # share of tokens that become the mask (or unknown) token
    #: "module:function" of yours: list of texts -> list as long, of other words for each or None. Back-translation and
    #: synonyms come in here; what it gives stands beside the originals of the train split.
    rewrite: str | None = Field(default=None, pattern=r"^[\w.]+:\w+$")


class Labels(Frozen):
    """`[train.labels]`: the shop's own labels by review id; they go before stars and categories."""

    paths: tuple[str, ...] = Field(min_length=1)
    columns: dict[Literal["id", "sentiment", "tags"], str]

    @field_validator("columns")
    @classmethod
    def _names_an_id_and_a_label(cls, value: dict[str, str]) -> dict[str, str]:
        if "id" not in value or len(value) < 2:
            raise ValueError("it maps id, and at least one of sentiment (0 and 1, or the three words) and tags")
        return value


class Init(Frozen):
    """`train.init`: a new encoder and tokenizer of this size, for a shop whose language no model reads."""

    layers: int = Field(default=6, ge=1)
    width: int = Field(default=384, ge=8)
    heads: int = Field(default=12, ge=1)
    vocab: int = Field(default=30_000, ge=300)

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Init:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")
        return self


class Train(Frozen):
    """`[train]`: one fine-tuning run."""

    name: str = Field(default="encoder", pattern=r"^[A-Za-z0-9][\w.-]*$")  # build uses it as "root:<name>"
    objectives: dict[str, float] = Field(default={"sentiment": 1.0, "tags": 1.0, "contrast": 0.5})  # their weights
    epochs: int = Field(default=2, ge=1)
    tokens_per_batch: int = Field(default=8192, ge=64)  # of one worker's forward pass, with padding
    learning_rate: float = Field(default=2e-5, gt=0)
    head_learning_rate: float = Field(default=1e-3, gt=0)
    warmup_share: float = Field(default=0.06, ge=0, lt=1)
    weight_decay: float = Field(default=0.01, ge=0)
    max_length: int = Field(default=256, ge=8)
    seed: int = Field(default=0, ge=0)
    dtype: Literal["bf16", "float32"] = "bf16"
    gradient_accumulation: int = Field(default=1, ge=1)
    gradient_clip: float = Field(default=1.0, gt=0)
    workers: int | tuple[int, int] = 2  # a pair: elastic between them
    gpus_per_worker: float | None = None  # absent: 1 where Ray has GPUs
    worker_labels: dict[str, str] | None = None  # of the nodes that workers may run on; absent: on any
    engine: Literal["deepspeed", "ddp"] = "deepspeed"
    deepspeed: DeepSpeed = DeepSpeed()
    peft: Peft | None = None
    track: Track = Track()
    augment: Augment = Augment()
    labels: Labels | None = None
    init: Init | None = None
    split: tuple[int, int, int] = (80, 10, 10)  # percent of users: train, validation, test
    fold: int = Field(default=0, ge=0)  # which users are the test ones; for cross-validation
    balance: float = Field(default=0.5, ge=0, le=1)  # 0: classes as they come, 1: all alike
    balance_floor: float = Field(default=0.5, gt=0, le=1)  # every row is drawn at least with this probability
    label_smoothing: float = Field(default=0.05, ge=0, lt=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    activation_checkpointing: bool = False
    checkpoint_steps: int = Field(default=500, ge=1)
    evaluations_per_epoch: int = Field(default=2, ge=1)
    patience: int = Field(default=4, ge=1)  # evaluations without a better score before training stops
    validation_rows: int = Field(default=4096, ge=1)  # judged at an evaluation; the report judges all
    max_failures: int = Field(default=3, ge=0)  # of workers, before the run is given up

    @field_validator("objectives")
    @classmethod
    def _objectives_exist(cls, value: dict[str, float]) -> dict[str, float]:
        for name, weight in value.items():
            if name not in OBJECTIVES:
                raise ValueError(f"{name!r} is no objective; there are {', '.join(OBJECTIVES)}")
            if weight <= 0:
                raise ValueError(f"{name} = {weight}: a weight is positive; leave out what is not wanted")
        if not value:
            raise ValueError("no objective is named; use sentiment = 1.0, for one")
        return value

    @field_validator("workers")
    @classmethod
    def _workers_are_a_range(cls, value: int | tuple[int, int]) -> int | tuple[int, int]:
        least, most = value if isinstance(value, tuple) else (value, value)
        if not 1 <= least <= most:
            raise ValueError("it is a number from 1, or [least, most]")
        return value

    @field_validator("split")
    @classmethod
    def _split_is_whole(cls, value: tuple[int, int, int]) -> tuple[int, int, int]:
        if sum(value) != 100 or min(value) < 1:
            raise ValueError("train, validation and test are percents of at least 1 that add up to 100")
        return value

    @field_validator("gpus_per_worker")
    @classmethod
    def _one_worker_a_gpu(cls, value: float | None) -> float | None:
        if value is not None and value not in (0, 1):
            raise ValueError("a worker has a whole GPU (1) or none (0): two on one GPU wait for each other for ever")
        return value

    @property
    def most_workers(self) -> int:
        return self.workers[1] if isinstance(self.workers, tuple) else self.workers


class Tune(Frozen):
    """`[tune]`: a search over keys of `[train]` with ASHA."""

    trials: int = Field(default=8, ge=1)
    at_once: int = Field(default=1, ge=1)
    grace: int = Field(default=1, ge=1)  # evaluations that a trial has before it can be stopped
    reduction: int = Field(default=2, ge=2)
    seed: int = Field(default=0, ge=0)
    #: key of [train] -> [low, high] (by logarithm where low > 0 and high >= 10 x low), or {choice = [...]}
    search: dict[str, Any] = Field(default={"learning_rate": [5e-6, 1e-4]})
