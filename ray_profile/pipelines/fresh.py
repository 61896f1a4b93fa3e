"""`train.init`: the new encoder that a run starts from, learnt from the shop's own texts and kept under the root."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from ray_profile import config as configuration
from ray_profile.config import Config
from ray_profile.pipelines.probe import ranges_of, reviews_of
from ray_profile.pipelines.run import listed
from ray_profile.sources.formats import is_catalogue, may_hold_text
from ray_profile.sources.redact import fingerprint
from ray_profile.sources.sample import spread
from ray_profile.store import models
from ray_profile.store.root import Root
from ray_profile.train import fresh
from ray_profile.train_config import Init

MAX_TEXTS = 200_000  # a vocabulary learns no more from more
WHOLE = "whole.json"  # written last: a folder without it is what a stopped run left
MAX_RANGES = 64  # of a source, evenly spread over its files


def started(config: Config, init: Init, root: Root, clock: datetime) -> Config:
    """The configuration with a new encoder and tokenizer, made now unless the same ones lie under the root already.

    Its length is that of training, its prefix none. Raises `SourceError` where there are too few texts.
    """
    files = [(file.path, file.size, file.tag) for name in config.sources for file in listed(config, name)]
    length, seed = config.train.max_length, config.train.seed
    formats = {name: source.model_dump(exclude={"paths"}) for name, source in config.sources.items()}
    privacy = [fingerprint(config.privacy.key()), config.privacy.redact]  # of what words the texts are left with
    digest = configuration.digest([files, formats, privacy, init.model_dump(), length, seed])
    parts = ("training", "fresh", digest)
    if not root.fs.exists(root.path(*parts, WHOLE)):
        with tempfile.TemporaryDirectory(prefix="encoder-") as folder:
            fresh.write(_texts(config, clock), init, length, seed, Path(folder))
            models.copied(Path(folder), root, parts)
        root.create_json({}, *parts, WHOLE)
    encoder = config.encoder.model_copy(update={"model": root.uri(*parts), "prefix": "", "max_length": length})
    return config.model_copy(update={"encoder": encoder})


def _texts(config: Config, clock: datetime) -> Iterator[str]:
    """Redacted texts of reviews, evenly spread over the sources."""
    spoken = [name for name, source in config.sources.items() if may_hold_text(source) and not is_catalogue(source)]
    for name in spoken:
        left = MAX_TEXTS // len(spoken)
        parts = spread(ranges_of(config.sources[name], listed(config, name)), MAX_RANGES)
        for reviews in reviews_of(config, clock, parts):
            texts = reviews["text"].head(left).to_list()
            left -= len(texts)
            yield from texts
            if left <= 0:
                break
