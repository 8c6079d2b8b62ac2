"""The package index that pip asks: here, none."""

from __future__ import annotations

import os

import pytest


def refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the index refuse every connection, whatever the user's own settings of pip say."""
    for name, value in {"INDEX_URL": "http://127.0.0.1:9", "RETRIES": "0", "CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
