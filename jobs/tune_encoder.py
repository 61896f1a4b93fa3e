"""What `ray job submit` runs: `python jobs/tune_encoder.py --config ray_profile.toml`, with the options of
`ray-profile tune`."""

from __future__ import annotations

import sys

from ray_profile.cli import main

if __name__ == "__main__":
    main(["tune", *sys.argv[1:]])
