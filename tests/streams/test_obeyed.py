"""The stand-in obeys what the log says of controls and accounts: from before it began, and while it runs, by whatever process."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path

from models.stand_in import Refusal
from schemas.account import AccountState, AccountStatus
from schemas.avro import encode
from schemas.controls import Controls, Usability
from schemas.decision import Outcome
from schemas.topics import ACCOUNT_CONTROLS, ACCOUNTS
from streams.bus import KafkaBus
from streams.control import Ear
from streams.settings import Settings
from streams.stand_in import StandIn
from streams.wired import obey
from tests.world import NOON, a_transaction


def test_a_stand_in_follows_what_is_said_of_accounts(real: Settings, tmp_path: Path) -> None:
    async def main() -> None:
        account_id, bus = f"a{uuid.uuid4().hex}", KafkaBus(real.changed(produce_timeout_ms=20_000))

        stand_in = StandIn.opened(real.changed(data_dir=tmp_path), NOON)
        assert stand_in is not None
        stand_in._known.note(a_transaction(), Outcome.APPROVE, NOON)
        obeying = asyncio.create_task(obey(stand_in, Ear(real, ACCOUNTS, AccountState)))
        closed = AccountState(account_id=account_id, currency="EUR", balance_minor=0, status=AccountStatus.CLOSED, as_of_ms=NOON)
        await bus.tell(ACCOUNTS, account_id, encode(closed))
        async with asyncio.timeout(60):
            while stand_in._refusal(a_transaction(account_id=account_id), NOON) is not Refusal.CONTROLS:
                await asyncio.sleep(0.05)
        obeying.cancel()
        await asyncio.gather(obeying, return_exceptions=True)
        await stand_in.close()
        await bus.close()

    asyncio.run(main())


def test_a_stand_in_obeys_controls_from_before_it_began_and_from_while_it_runs(real: Settings, tmp_path: Path) -> None:
    async def main() -> None:
        before, during, bus = f"a{uuid.uuid4().hex}", f"a{uuid.uuid4().hex}", KafkaBus(real.changed(produce_timeout_ms=20_000))

        async def freeze(account_id: str) -> None:
            frozen = Controls(controls_id=f"ctl_{account_id}", account_id=account_id, status=Usability.FROZEN, counted_since_ms=NOON, at_ms=NOON)
            await bus.tell(ACCOUNT_CONTROLS, frozen.controls_id, encode(frozen))

        def why(account_id: str) -> Refusal | None:
            return stand_in._refusal(a_transaction(account_id=account_id), NOON)

        await freeze(before)
        stand_in = StandIn.opened(real.changed(data_dir=tmp_path), NOON)
        assert stand_in is not None
        await asyncio.to_thread(stand_in.learn, real)
        stand_in._known.note(a_transaction(), Outcome.APPROVE, NOON)  # whatever other tests of this log say of the card
        assert (why(before), why(during)) == (Refusal.CONTROLS, None)
        obeying = asyncio.create_task(obey(stand_in, Ear(real, ACCOUNT_CONTROLS, Controls, stand_in.controls_known)))
        await freeze(during)
        async with asyncio.timeout(60):
            while why(during) is not Refusal.CONTROLS:
                await asyncio.sleep(0.05)
        obeying.cancel()
        await asyncio.gather(obeying, return_exceptions=True)
        await stand_in.close()
        await bus.close()

    asyncio.run(main())
