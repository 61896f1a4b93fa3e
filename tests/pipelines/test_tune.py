"""What `[tune]` may say, and what a trial is made of. (A search itself takes minutes.)"""

from __future__ import annotations

from typing import Any

import pytest
from ray.tune.search.sample import Categorical, Float, Integer

from ray_profile.errors import ConfigError
from ray_profile.pipelines.tune import domain, with_setting
from ray_profile.train_config import Train


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
