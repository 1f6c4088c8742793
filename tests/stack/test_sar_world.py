"""The SAR app's Redis is reached as the user of the settings; what it cannot look for, it says."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from schemas.decision import Decision, Outcome
from schemas.topics import DECISIONS
from schemas.transaction import TransactionKind
from streams import folder, memory_server, metrics, sar
from streams.bus import ListBus
from streams.follow import Source
from streams.parts import Part
from streams.settings import Settings
from tests.first_model import MODEL_KEY
from tests.models.decisions import a_decision
from tests.stack.world import keeper_of

PLACE = Source(DECISIONS.name, 0, 0, 0, b"A", b"", ())


def deposits(currency: str) -> list[Decision]:
    """Three within a day, each below what is reported by itself."""
    return [a_decision(f"{currency}{i}", TransactionKind.CASH_IN, 400_000, i, Outcome.APPROVE, currency=currency) for i in range(3)]


@pytest.mark.integration
def test_a_currency_without_a_rate_is_said_once_and_redis_is_reached_as_the_user_named(settings: Settings) -> None:
    place, path = settings.data_dir, folder.socket_path(settings.data_dir, "redis.sock")
    place.mkdir(parents=True)
    settings = settings.changed(redis_url=f"unix://{path}", redis_username="bank", redis_password="secret", model_key=MODEL_KEY)
    user = ("--user", "bank", "on", ">secret", "~*", "+@all")
    command = (*memory_server.command(memory_server.embedded_executable(), place, path), *user)

    async def story() -> list[int]:
        wire = await sar.Wire.connect(settings.redis_url, "secret", "bank")
        await wire.send((b"SET", sar.WHOLE, b"1"))
        await wire.close()
        world = await sar.sar_world(settings, ListBus())
        assert await world.wire.send((b"ACL", b"WHOAMI")) == [b"bank"]
        found = [len(await sar.on_decision(world, d, PLACE)) for currency in ("VES", "USD") for d in deposits(currency)]
        await world.close()
        return found

    with keeper_of(Part("redis", command, {}, place / "log", lambda _: memory_server.answers(path))) as keeper:
        keeper.part("redis").wait_ready(10)
        before = count()
        with capture_logs() as said:
            assert asyncio.run(story()) == [0, 0, 0, 0, 0, 1]
    assert count() - before == 3
    assert [line["currency"] for line in said if line["event"] == sar.NO_RATE] == ["VES"]


def count() -> float:
    """Movements in which no pattern could be found."""
    return float(metrics.DEGRADATIONS.labels(sar.NO_RATE)._value.get())
