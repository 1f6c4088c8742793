"""What a bank would put together in a week: FastAPI, pydantic, redis.asyncio sorted sets, scikit-learn members. Only to be measured beside us.

`python -m tests.bench.typical PORT REDIS_URL`. It checks no funds, places no hold, and nothing it says is durable.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import redis.asyncio as redis
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel, Field
from sklearn.ensemble import HistGradientBoostingClassifier, IsolationForest, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier

WINDOWS_S = (60, 600, 3_600, 86_400)
ENTITIES = ("card_token", "account_id", "customer_id", "device_token", "merchant_id", "terminal_id")
COLUMNS = len(WINDOWS_S) * len(ENTITIES) * 2 + 1


class Payment(BaseModel):
    """A payment as it comes."""

    transaction_id: str = Field(min_length=1, max_length=64)
    kind: str
    at_ms: int
    amount_minor: int = Field(ge=0)
    currency: str = Field(pattern="^[A-Z]{3}$")
    account_id: str
    customer_id: str | None = None
    card_token: str | None = None
    device_token: str | None = None
    merchant_id: str | None = None
    terminal_id: str | None = None
    mcc: str | None = None
    country: str | None = None


def members() -> list[object]:
    """Five members, of the sizes that are usual."""
    chance = np.random.default_rng(1)
    rows = chance.random((3_000, COLUMNS))
    fraud = rows[:, 0] + rows[:, 1] > 1.6
    made = [
        LogisticRegression(max_iter=500),
        RandomForestClassifier(n_estimators=200, max_depth=12, n_jobs=1, random_state=1),
        HistGradientBoostingClassifier(max_iter=300, random_state=1),
        MLPClassifier((32,), max_iter=60, random_state=1),
    ]
    return [member.fit(rows, fraud) for member in made] + [IsolationForest(n_estimators=200, random_state=1).fit(rows)]


async def features(store: redis.Redis, txn: Payment) -> np.ndarray:
    """Counts and sums of each entity's windows, from a sorted set each."""
    now_s = txn.at_ms / 1000
    tokens = [(name, token) for name in ENTITIES if (token := getattr(txn, name))]
    async with store.pipeline(transaction=False) as pipe:
        for name, token in tokens:
            key = f"typical:{name}:{token}"
            pipe.zadd(key, {f"{txn.transaction_id}:{txn.amount_minor}": now_s})
            pipe.zremrangebyscore(key, 0, now_s - WINDOWS_S[-1])
            pipe.zrange(key, 0, -1, withscores=True)
            pipe.expire(key, WINDOWS_S[-1])
        replies = await pipe.execute()
    vector = np.zeros((1, COLUMNS))
    vector[0, -1] = txn.amount_minor
    for place, rows in enumerate(replies[2::4]):
        for number, window_s in enumerate(WINDOWS_S):
            inside = [int(row.rpartition(b":")[2]) for row, at_s in rows if at_s > now_s - window_s]
            vector[0, (place * len(WINDOWS_S) + number) * 2 : (place * len(WINDOWS_S) + number) * 2 + 2] = len(inside), sum(inside)
    return vector


def application(redis_url: str) -> FastAPI:
    """The service."""
    app, store, models = FastAPI(), redis.from_url(redis_url), members()

    @app.post("/v1/authorizations")
    async def authorize(txn: Payment) -> dict[str, object]:
        began = time.perf_counter()
        vector = await features(store, txn)
        scores = [float(model.predict_proba(vector)[0, 1]) for model in models[:-1]] + [float(-models[-1].score_samples(vector)[0])]
        score = sum(scores) / len(scores)
        outcome = "block" if score > 0.8 else "review" if score > 0.5 else "approve"
        return {"transaction_id": txn.transaction_id, "outcome": outcome, "score": score, "seconds": time.perf_counter() - began}

    return app


if __name__ == "__main__":
    uvicorn.run(application(sys.argv[2]), port=int(sys.argv[1]), log_level="warning")
