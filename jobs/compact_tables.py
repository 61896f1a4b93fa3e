"""What `ray job submit` runs: `python jobs/compact_tables.py --config ray_profile.toml`, with the options of
`ray-profile compact`."""

from __future__ import annotations

import sys

from ray_profile.cli import main

if __name__ == "__main__":
    main(["compact", *sys.argv[1:]])
