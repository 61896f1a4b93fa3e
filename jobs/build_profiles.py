"""What `ray job submit` runs: `python jobs/build_profiles.py --config ray_profile.toml`, with the options of
`ray-profile build`."""

from __future__ import annotations

import sys

from ray_profile.cli import main

if __name__ == "__main__":
    main(["build", *sys.argv[1:]])
