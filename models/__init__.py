"""The third floor: what follows. Learned and written judgement, and the legal moves of holds and ledger; one door, `registry.py`."""
