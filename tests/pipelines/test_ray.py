"""Through Ray and as a plain loop the same tables come out."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from equal import assert_equal_roots

from ray_profile.errors import QuarantineLimitError
from ray_profile.pipelines.build import build
from ray_profile.sources.simulate import Shop

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_here")]


def test_through_ray_equals_the_plain_loop(shop: Shop, built: Path, tmp_path: Path) -> None:
    stages: list[str] = []
    config = tiny.config_of(shop, tmp_path / "root")
    done = build(config, clock=tiny.CLOCK, progress=lambda stage, *_: stages.append(stage))
    assert done.report.rows_read == shop.review_rows + shop.event_rows
    assert done.report.texts > 0
    assert {"fold", "fuse"} <= set(stages)
    assert_equal_roots(tmp_path / "root", built, tiny.WIDTH)


def test_an_error_in_the_plan_reaches_the_caller_as_itself(shop: Shop, tmp_path: Path) -> None:
    config = tiny.config_of(shop, tmp_path / "root", "sources.events.max_quarantine=0")
    with pytest.raises(QuarantineLimitError, match="max_quarantine"):
        build(config, clock=tiny.CLOCK)
