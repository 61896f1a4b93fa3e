"""Where a run's curves go besides its report: TensorBoard's files under the root, Weights & Biases, MLflow."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path

from ray_profile.errors import ConfigError
from ray_profile.store.root import Root
from ray_profile.train_config import Track

Point = Mapping[str, float]  # of the curves: "step", and what was measured there
Tell = Callable[[Sequence[Point]], None]

#: What each tracker comes with.
_PACKAGES = {"tensorboard": "'ray_profile[train]'", "wandb": "wandb", "mlflow": "mlflow"}


def insist(track: Track) -> None:
    """Raise `ConfigError` for a tracker that is asked for and not installed."""
    for name, package in _PACKAGES.items():
        if getattr(track, name) and find_spec(name) is None:
            raise ConfigError(
                f"train.track.{name} = true, and {name} is not installed; `pip install {package}`, here and wherever "
                f"workers run, or set train.track.{name} = false"
            )


@contextmanager
def tracked(track: Track, root: Root, folder: Sequence[str], run: str) -> Iterator[Tell]:
    """What to tell of a run's curves: all points so far, each time. The new ones go to every tracker.

    TensorBoard's file lies in `folder` under the root. A run that was interrupted tells its points from the first when
    it goes on, so its new file takes the place of the old one; W&B and MLflow go on with what they have of it.
    """
    with ExitStack() as stack:
        tells: list[Tell] = []
        if track.tensorboard:
            tells.append(stack.enter_context(_tensorboard(root, folder)))
        if track.wandb:
            tells.append(stack.enter_context(_wandb(run)))
        if track.mlflow:
            tells.append(stack.enter_context(_mlflow(run)))
        told = 0

        def tell(curves: Sequence[Point]) -> None:
            nonlocal told
            for each in tells:
                each(curves[told:])
            told = len(curves)

        yield tell


@contextmanager
def _tensorboard(root: Root, folder: Sequence[str]) -> Iterator[Tell]:
    from torch.utils.tensorboard import SummaryWriter

    earlier = [entry.path for entry in root.list(*folder)]
    with tempfile.TemporaryDirectory(prefix="curves-") as made, SummaryWriter(made) as writer:

        def tell(points: Sequence[Point]) -> None:
            for point in points:
                for name, value in point.items():
                    writer.add_scalar(name, value, int(point["step"]))
            writer.flush()
            for file in Path(made).iterdir():
                root.replace(file, *folder, file.name)
            root.delete(earlier)
            earlier.clear()

        yield tell


@contextmanager
def _wandb(run: str) -> Iterator[Tell]:
    import wandb

    with wandb.init(project="ray_profile", name=run, id=run, resume="allow") as opened:

        def tell(points: Sequence[Point]) -> None:
            for point in points:
                opened.log(dict(point), step=int(point["step"]))  # steps that it has already are left out by itself

        yield tell


@contextmanager
def _mlflow(run: str) -> Iterator[Tell]:
    import mlflow

    wanted = f"attributes.run_name = '{run}' and attributes.status != 'FINISHED'"
    begun = mlflow.search_runs(filter_string=wanted, max_results=1, output_format="list")
    which = {"run_id": begun[0].info.run_id} if begun else {"run_name": run}
    with mlflow.start_run(**which) as opened:
        last = opened.data.metrics.get("step", -1.0)

        def tell(points: Sequence[Point]) -> None:
            for point in points:
                if point["step"] > last:
                    mlflow.log_metrics(dict(point), step=int(point["step"]))

        yield tell
