"""What `ray job submit` runs: `python jobs/index_profiles.py --config ray_profile.toml`, with the options of
`ray-profile index`."""

from __future__ import annotations

import sys

from ray_profile.cli import main

if __name__ == "__main__":
    main(["index", *sys.argv[1:]])
