"""Who cannot decide yet waits, says once why, and decides as soon as it can."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from features.catalogue import CATALOGUE
from models.policy import Policy
from schemas.errors import ArtefactError
from schemas.governance import Control
from streams import control
from streams.control import Ear
from streams.judgement import Bench, first_panel
from streams.settings import Settings
from tests.first_model import MODEL_KEY
from tests.world import a_policy


class Silence(Ear[Control]):
    """A topic on which nothing was told."""

    def __init__(self) -> None:
        """Asks nobody."""

    def heard(self, wait_s: float) -> list[Control]:
        """Nothing."""
        return []


def test_a_model_whose_files_are_not_here_yet_is_waited_for(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "WAIT_S", 0.01)
    bench = Bench(Settings(registry_dir=trained, model_key=MODEL_KEY), CATALOGUE)
    model_id = str(bench.registry.champion_id())
    files, aside = trained / "models" / model_id, trained / "aside"

    async def play() -> str:
        files.rename(aside)
        starting = asyncio.create_task(first_panel(bench, Silence()))
        await asyncio.sleep(0.2)
        assert not starting.done()
        aside.rename(files)
        panel, told = await asyncio.wait_for(starting, 30)
        assert told == {}
        return panel.champions.model.model_id

    with capture_logs() as said:
        assert asyncio.run(play()) == model_id
    (line,) = said
    assert (line["log_level"], model_id in line["reason"]) == ("error", True)


def test_each_reason_is_said_once_and_a_bug_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "WAIT_S", 0.01)
    reasons = [ArtefactError("a"), ArtefactError("a"), OSError("b")]

    def policy() -> Policy:
        if reasons:
            raise reasons.pop(0)
        return a_policy()

    def broken() -> Policy:
        raise ValueError

    with capture_logs() as said:
        assert asyncio.run(control.waited_for("a policy", policy)) is a_policy()
    assert [line["reason"] for line in said] == ["a", "b"]
    with pytest.raises(ValueError):
        asyncio.run(control.waited_for("a policy", broken))
