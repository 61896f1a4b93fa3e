"""`python -m ray_profile` is `ray-profile`."""

from ray_profile.cli import main

main()
