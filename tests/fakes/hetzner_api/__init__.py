"""A fake of Hetzner's cloud whose servers are real machines; see `api.HetznerApi`."""

from __future__ import annotations

from fakes.hetzner_api.api import HetznerApi

__all__ = ["HetznerApi"]
