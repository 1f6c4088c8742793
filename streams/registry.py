"""The registry of a system: the folder and the key that its settings name."""

from __future__ import annotations

from models.registry import Registry
from streams.folder import keys_of, with_kept_secrets
from streams.settings import Settings


def registry_of(settings: Settings) -> Registry:
    """The registry of these settings, with the key of its data folder."""
    settings = with_kept_secrets(settings)
    return Registry(settings.registry_dir, keys_of(settings))
