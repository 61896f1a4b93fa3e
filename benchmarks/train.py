"""What the training loop costs beside bare loops, what ZeRO saves, and how long a run takes to its first step.

    python benchmarks/train.py [--full] [--data ../shared/data] [--out benchmarks/results]

Two workers on this machine, gloo, bf16, all-MiniLM-L6-v2 with a sentiment head, batches of real reviews
(amazon_musical) in memory. In one process a worker, in turn: our loop with the DeepSpeed engine and a bare DeepSpeed
loop; our loop with the DDP engine and bare DistributedDataParallel. Both take the same batches through the same model.
Then a whole `ray-profile train`, for the share of a step that waits for data and the time to the first step.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import measuring
import polars as pl
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from rich.console import Console
from rich.table import Table

from ray_profile.config import Encoder, load
from ray_profile.encode.heads import sentiment_of_stars
from ray_profile.encode.taxonomy import Taxonomy
from ray_profile.encode.tokens import Tokenizer
from ray_profile.encode.weights import resolve
from ray_profile.train import engines, loop, start
from ray_profile.train.batch import Batch, collate
from ray_profile.train.examples import EXAMPLES
from ray_profile.train.loop import Hooks, Progress
from ray_profile.train.model import Settings, Trainee
from ray_profile.train.plan import Plan
from ray_profile.train.shards import tokenised
from ray_profile.train_config import Train

WORKERS = 2
TOKENS = 2048  # of a batch: a step takes half a second here
TAXONOMY = Taxonomy(())


def main() -> None:
    args = measuring.arguments(__doc__ or "").parse_args()
    steps, rounds = (40, 7) if args.full else (10, 5)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        batches_of(args.data, WORKERS * steps).write_parquet(folder / "rows.parquet")
        loops = {engine: spawned(_compare, folder, engine, 1, steps, rounds) for engine in ("deepspeed", "ddp")}
        memory = {f"zero_{stage}": spawned(_peak, folder, "deepspeed", stage, 4, 1) for stage in range(4)}
        whole = whole_run(args.data, folder, args.full)
    ratios = {f"{name}_over_bare": found["bare"] / found["ours"] for name, found in loops.items()}
    ratios["waited_share"] = whole["waited_share"]
    print_all(loops, memory, whole)
    body = {
        "what": __doc__,
        "machine": measuring.machine("torch", "deepspeed", "ray", "transformers"),
        "workers": WORKERS,
        "seconds_of_a_round": loops,
        "peak_mib_of_a_worker": memory,
        "whole_run": whole,
    }
    measuring.finish("train", body, ratios, args.out, args.full)


def batches_of(data: Path, count: int) -> pl.DataFrame:
    """Examples of about `count` batches."""
    rows = pl.read_parquet(data / "amazon_musical" / "reviews.parquet").filter(pl.col("reviewText") != "")
    rows = rows.sample(min(rows.height, 24 * count), seed=0)
    labels = sentiment_of_stars(rows["overall"]).argmax(1)
    frame = rows.select(
        pl.int_range(pl.len()).cast(pl.String).alias("id"),
        pl.col("reviewerID").alias("user_id"),
        pl.col("asin").alias("item_id"),
        pl.lit("train").alias("split"),
        pl.col("reviewText").alias("text"),
    ).with_columns(pl.Series("sentiment", labels, dtype=pl.Int8), pl.lit(None, pl.List(pl.Int32)).alias("tags"))
    frame = frame.with_columns(pl.lit(None, pl.String).alias("about")).select(*EXAMPLES)
    tokenizer = Tokenizer.load(Encoder(max_length=128))
    return tokenised(frame, tokenizer, tokenizer)


def spawned(work: Callable[..., None], folder: Path, engine: str, stage: int, steps: int, rounds: int) -> Any:
    """What worker 0 found, of `WORKERS` processes that do `work`."""
    meet, out = folder / f"meet-{work.__name__}-{engine}-{stage}", folder / f"{work.__name__}-{engine}-{stage}.json"
    mp.spawn(work, (str(meet), str(out), str(folder), engine, stage, steps, rounds), nprocs=WORKERS)
    return json.loads(out.read_text())


def _begin(rank: int, meet: str, folder: str, engine: str, stage: int, steps: int) -> tuple[Train, list[Batch]]:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORKERS), "DS_ACCELERATOR": "cpu"}
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // WORKERS))
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=WORKERS)
    told = {"objectives": {"sentiment": 1.0}, "epochs": 1, "engine": engine, "deepspeed": {"zero_stage": stage}}
    settings = Train.model_validate({**told, "dropout": 0.0, "checkpoint_steps": 10**9, "evaluations_per_epoch": 1})
    rows = pl.read_parquet(Path(folder) / "rows.parquet").sort("length", descending=True)
    size = max(1, TOKENS // 128)
    parts = [rows[at : at + size] for at in range(0, rows.height, size)]
    mine = [collate(part, 0) for part in parts[rank::WORKERS][:steps]]
    return settings, mine


def _trainee(settings: Train) -> Trainee:
    torch.manual_seed(0)
    made = Settings(settings.objectives, {"sentiment": TOKENS / 64}, "mean", True, 0.0)
    return Trainee(start.encoder(resolve(Encoder().model), settings), made, None)


def _compare(rank: int, meet: str, out: str, folder: str, engine: str, stage: int, steps: int, rounds: int) -> None:
    settings, mine = _begin(rank, meet, folder, engine, stage, steps)
    device = torch.device("cpu")
    ours = engines.make(_trainee(settings), settings, device)
    bare = bare_deepspeed(settings) if engine == "deepspeed" else bare_ddp(settings)
    plan = Plan(0, ((WORKERS * len(mine),),))
    hooks = Hooks(lambda: {"score": 0.0}, lambda _, __: None)

    def through_the_loop() -> None:
        loop.train(ours, settings, plan, Progress.start(plan), iter(mine), 0, hooks)

    took: dict[str, list[float]] = {"ours": [], "bare": []}
    for at in range(rounds + 1):
        for name, work in (("ours", through_the_loop), ("bare", lambda: bare(mine))):
            dist.barrier()
            began = time.perf_counter()
            work()
            dist.barrier()
            if at:  # the first round builds kernels
                took[name].append(time.perf_counter() - began)
    if rank == 0:
        found = {name: statistics.median(seconds) for name, seconds in took.items()}
        rows = WORKERS * sum(batch.rows for batch in mine)
        said = {**found, "rows_per_second": rows / found["ours"], "rounds": took}
        Path(out).write_text(json.dumps(said))
    dist.destroy_process_group()


def bare_deepspeed(settings: Train) -> Callable[[Sequence[Batch]], None]:
    """The loop of DeepSpeed's own tutorial."""
    import deepspeed

    trainee = _trainee(settings)
    optimizer = torch.optim.AdamW(trainee.parameters(), lr=settings.learning_rate)
    engine, *_ = deepspeed.initialize(model=trainee, optimizer=optimizer, config=engines.deepspeed_config(settings))

    def work(batches: Sequence[Batch]) -> None:
        engine.train()
        for batch in batches:
            loss, _ = engine(batch)
            engine.backward(loss)
            engine.step()

    return work


def bare_ddp(settings: Train) -> Callable[[Sequence[Batch]], None]:
    """The loop of torch's own tutorial."""
    trainee = _trainee(settings)
    model = torch.nn.parallel.DistributedDataParallel(trainee)
    optimizer = torch.optim.AdamW(trainee.parameters(), lr=settings.learning_rate)

    def work(batches: Sequence[Batch]) -> None:
        model.train()
        for batch in batches:
            with torch.autocast("cpu", torch.bfloat16) if settings.dtype == "bf16" else nullcontext():
                loss, _ = model(batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trainee.parameters(), settings.gradient_clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return work


def _peak(rank: int, meet: str, out: str, folder: str, engine: str, stage: int, steps: int, rounds: int) -> None:
    settings, mine = _begin(rank, meet, folder, engine, stage, steps)
    short = [replace(batch) for batch in mine[-steps:]]
    before = _resident()
    ours = engines.make(_trainee(settings), settings, torch.device("cpu"))
    plan = Plan(0, ((WORKERS * len(short) * rounds,),))
    hooks = Hooks(lambda: {"score": 0.0}, lambda _, __: None)
    loop.train(ours, settings, plan, Progress.start(plan), iter(short * rounds), 0, hooks)
    if rank == 0:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        Path(out).write_text(json.dumps({"peak": peak, "before": before}))
    dist.destroy_process_group()


def _resident() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def whole_run(data: Path, folder: Path, full: bool) -> dict[str, float]:
    """`ray-profile train` on real reviews: the share of steps' time that waits for data, and the time to the first."""
    from ray_profile.pipelines.train import train

    reviews = pl.read_parquet(data / "amazon_musical" / "reviews.parquet")
    (folder / "reviews").mkdir()
    reviews.head(reviews.height if full else 1_500).write_parquet(folder / "reviews" / "reviews.parquet")
    trace = folder / "trace"
    trace.mkdir()
    config = folder / "shop.toml"
    config.write_text(
        'root = "root"\n[sources.reviews]\nformat = "amazon-2014"\npaths = ["reviews/*.parquet"]\n[train]\n'
        "objectives = { sentiment = 1.0 }\nepochs = 1\nmax_length = 128\ntokens_per_batch = 2048\n"
    )
    began = time.time()
    summary = train(load(config), trace=str(trace))
    first = min(float(json.loads(path.read_text().splitlines()[0])["at"]) for path in trace.glob("*.jsonl"))
    curves = json.loads((Path(summary.address) / "report" / "metrics.json").read_text())["curves"]
    points = [point for point in curves if "waited_share" in point]
    return {
        "seconds_to_first_step": first - began,
        "seconds": summary.seconds,
        "waited_share": statistics.median(point["waited_share"] for point in points),
        "tokens_per_second_of_a_worker": statistics.median(point["tokens_per_second"] for point in points),
        **{f"stage_{name}": seconds for name, seconds in summary.stages.items()},
    }


def print_all(loops: dict[str, Any], memory: dict[str, Any], whole: dict[str, float]) -> None:
    console = Console()
    table = Table("engine", "ours s", "bare s", "bare / ours", "rows/s")
    for name, found in loops.items():
        ratio = found["bare"] / found["ours"]
        table.add_row(
            name, *(f"{found[k]:.2f}" for k in ("ours", "bare")), f"{ratio:.3f}", f"{found['rows_per_second']:.0f}"
        )
    console.print(table)
    peaks = Table("ZeRO", "peak MiB of a worker")
    for name, found in memory.items():
        peaks.add_row(name, f"{found['peak']:.0f}")
    console.print(peaks)
    console.print({name: round(value, 3) for name, value in whole.items()})


if __name__ == "__main__":
    main()
