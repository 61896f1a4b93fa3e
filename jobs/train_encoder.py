"""What `ray job submit` runs: `python jobs/train_encoder.py --config ray_profile.toml`, with the options of
`ray-profile train`."""

from __future__ import annotations

import sys

from ray_profile.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
