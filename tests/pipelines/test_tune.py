"""What `[tune]` may say, and what a trial is made of. (test_search.py searches.)"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray.tune.search.sample import Categorical, Float, Integer

from ray_profile.config import Config, parse
from ray_profile.errors import ConfigError
from ray_profile.pipelines.train import train
from ray_profile.pipelines.tune import Outcome, domain, tune_encoder, with_setting
from ray_profile.train import track
from ray_profile.train_config import Train


def searching(root: Path, **search: Any) -> Config:
    return parse({"root": str(root), "tune": {"search": search}})


def test_ranges_are_by_logarithm_where_they_are_wide() -> None:
    wide, narrow = domain("learning_rate", [1e-6, 1e-3]), domain("dropout", [0.0, 0.3])
    assert isinstance(wide, Float)
    assert isinstance(narrow, Float)
    assert "Log" in type(wide.get_sampler()).__name__
    assert "Log" not in type(narrow.get_sampler()).__name__
    assert isinstance(domain("epochs", [1, 4]), Integer)
    assert isinstance(domain("balance", {"choice": [0.0, 1.0]}), Categorical)


@pytest.mark.parametrize("said", [[2, 1], [1], "high", {"choice": []}, {"low": 1}])
def test_what_is_no_range_is_named(said: Any) -> None:
    with pytest.raises(ConfigError, match=r"tune\.search\.dropout = .* is no range"):
        domain("dropout", said)


def test_a_trial_has_the_file_s_settings_and_its_own() -> None:
    settings = Train.model_validate({"epochs": 5, "objectives": {"sentiment": 1.0, "contrast": 0.5}})
    made = with_setting(settings, {"learning_rate": 1e-4, "objectives.contrast": 0.2, "deepspeed.zero_stage": 2})
    assert made.epochs == 5
    assert made.learning_rate == 1e-4
    assert made.objectives == {"sentiment": 1.0, "contrast": 0.2}
    assert made.deepspeed.zero_stage == 2
    assert settings.objectives["contrast"] == 0.5


def test_a_key_that_training_does_not_have_is_an_error_with_its_nearest() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'train\.learning_rate'"):
        with_setting(Train(), {"learning_rat": 1e-4})


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("max_length", [64, 128]),
        ("fold", {"choice": [0, 1]}),
        ("augment.rewrite", {"choice": ["a:b"]}),
        ("init", {"choice": [{"layers": 2}]}),
    ],
)
def test_what_needs_another_training_set_is_not_searched(key: str, said: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"tune\.search\.{key}: all trials learn from one training set"):
        tune_encoder(searching(tmp_path / "root", **{key: said}))
    assert not (tmp_path / "root").exists()


def test_both_ends_of_a_range_must_be_good_for_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dropout.*less than 1"):
        tune_encoder(searching(tmp_path / "root", dropout=[0.1, 1.5]))


def test_a_trial_is_worth_its_best_evaluation_and_nothing_where_it_diverged() -> None:
    assert Outcome([0.2, 0.6, 0.5], 9.0, "stopped").told() == {
        "score": 0.6, "evaluation": 3, "seconds": 9.0, "ended": "stopped",
    }  # fmt: skip
    assert Outcome([0.2, 0.6], 9.0, "diverged at step 40").told()["score"] < 0
    assert Outcome().told()["score"] < 0


@pytest.mark.parametrize("command", [train, tune_encoder])
def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_read(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(track, "find_spec", lambda _: None)
    config = parse({"root": str(tmp_path / "root"), "train": {"track": {"tensorboard": False, "mlflow": True}}})
    with pytest.raises(ConfigError, match=r"train\.track\.mlflow = true, .*`pip install mlflow`"):
        command(config)
    assert not (tmp_path / "root").exists()
