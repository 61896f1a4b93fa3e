"""User profiles from a shop's reviews, behaviour logs and pictures."""

__version__ = "0.1.0"
