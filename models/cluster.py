"""Clusters of accounts: who shares identities or moves money with whom, and how much of it was fraud. Judgement over the past alone.

Accounts are tied by each device, e-mail, phone and address that they share (1 each) and by money that went between them (a half, however
often and whichever way). A cluster is what the Leiden algorithm (Traag, Waltman, van Eck 2019) finds under the constant Potts model:
its members are tied among themselves by more than `DENSITY` a pair. Unlike modularity that has no resolution limit, so that a ring of
five is found in a bank of a million.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import igraph
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Array = np.ndarray[Any, np.dtype[Any]]

IDENTITIES = ("device_token", "email_token", "phone_token", "address_token")
"""What accounts may share; IP addresses are shared by strangers."""
ACCOUNT, COUNTERPARTY = "account_id", "counterparty_account_id"
TIES = (ACCOUNT, COUNTERPARTY, *IDENTITIES)
"""The columns of a past, all text or null, and `at_ms` beside them."""
LABELS = ("transaction_id", "account_id", "fraud", "learned_at_ms")
"""The columns of what was learned, in the order in which it was said."""
HUB = 20
"""An identity of more accounts than this is a branch's terminal or a public device, and an account with more counterparties an employer
or a landlord: they tie nobody."""
TRANSFER_WEIGHT = 0.5
DENSITY = 0.1
"""On a simulated bank of 100,000 accounts with rings of 5 to 15, 0.1 found them with the fewest strangers in them."""
ITERATIONS = 2


class Chance(Protocol):
    """Where chance comes from: a `random.Random` of a given seed."""

    def random(self) -> float: ...
    def randint(self, a: int, b: int, /) -> int: ...
    def gauss(self, mu: float = ..., sigma: float = ..., /) -> float: ...


class Ties(NamedTuple):
    """Pairs of account numbers (the smaller first, each pair once), how strongly each is tied, and whether by a shared identity."""

    pairs: Array
    weight: Array
    shared: Array


@dataclass(frozen=True, eq=False)
class Clusters:
    """What is known of each account as of a moment: names in order, with the numbers of accounts as their indices.

    An account alone has size 1 and fraud share 0. `fraud_share` is that of the *other* accounts in the cluster; `shared_identities` how many
    other accounts use a device, e-mail, phone or address of this one.
    """

    accounts: Array
    cluster: Array
    fraud: Array
    ties: Ties

    @cached_property
    def cluster_size(self) -> Array:
        """float64: accounts in the account's cluster, itself among them."""
        return np.bincount(self.cluster)[self.cluster].astype(np.float64) if len(self.cluster) else np.empty(0)

    @cached_property
    def cluster_fraud_share(self) -> Array:
        """float64: of the others in the cluster, the share with a fraud."""
        if not len(self.cluster):
            return np.empty(0)
        others = np.bincount(self.cluster, self.fraud)[self.cluster] - self.fraud
        share: Array = others / np.maximum(self.cluster_size - 1.0, 1.0)
        return share

    @cached_property
    def shared_identities(self) -> Array:
        """float64: accounts that share an identity with this one."""
        return np.bincount(self.ties.pairs[self.ties.shared].ravel(), minlength=len(self.accounts)).astype(np.float64)


COLUMNS = ("cluster_size", "cluster_fraud_share", "shared_identities")
"""The columns of an account's profile that this file knows, by the names of Clusters' fields."""
ALONE = (1.0, 0.0, 0.0)
"""What they are for an account that nothing ties to another."""


def clusters_of(past: pa.Table, learned: pa.Table, as_of_ms: int, window_ms: int, chance: Chance, hub: int = HUB) -> Clusters:
    """The clusters as known at `as_of_ms`: of what happened in the `window_ms` before it, with the frauds learned before it.

    Both strictly before, so that a payment at that very moment does not find itself in what is known of it. The same rows in any order give
    the same clusters from the same chance.
    """
    at_ms = past["at_ms"].to_numpy()
    within = (at_ms < as_of_ms) & (at_ms >= as_of_ms - window_ms)
    seen = past if within.all() else past.filter(pa.array(within))  # an archive is read within the window: no copy of it
    names = pc.unique(pa.chunked_array([*seen[ACCOUNT].chunks, *seen[COUNTERPARTY].chunks], pa.string()).drop_null())
    names = names.take(pc.sort_indices(names))
    numbers = {name: _numbers(seen[name], names) for name in (ACCOUNT, COUNTERPARTY)}
    tokens = {name: _codes(seen[name]) for name in IDENTITIES}
    ties = ties_of(numbers[ACCOUNT], numbers[COUNTERPARTY], tokens, len(names), hub)
    fraud = np.zeros(len(names))
    found = _numbers(frauds_known(learned, as_of_ms), names)
    fraud[found[found >= 0]] = 1.0
    return Clusters(np.array(names.to_pylist(), dtype=object), communities(len(names), ties, chance), fraud, ties)


def frauds_known(learned: pa.Table, as_of_ms: int) -> pa.Array:
    """The accounts with a transaction whose newest label learned before `as_of_ms` says that it was fraud. A withdrawn fraud is none."""
    known = learned.filter(pc.less(learned["learned_at_ms"], as_of_ms))
    order = np.argsort(known["learned_at_ms"].to_numpy(), kind="stable")
    transactions = _codes(known["transaction_id"])[order]
    last = len(order) - 1 - np.unique(transactions[::-1], return_index=True)[1]
    newest = known.take(pa.array(order[last]))
    return pc.unique(newest.filter(newest["fraud"])["account_id"])


def ties_of(accounts: Array, counterparties: Array, tokens: Mapping[str, Array], n: int, hub: int = HUB) -> Ties:
    """Who of n accounts is tied to whom, and how strongly. -1 is 'not given'."""
    shared = [_sharing(accounts, codes, n, hub) for codes in tokens.values()]
    paid = _paying(accounts, counterparties, n, hub)
    keys, place = np.unique(np.concatenate([*shared, paid]), return_inverse=True)
    identity = np.zeros(len(keys), np.bool_)
    from_identities = sum(len(each) for each in shared)
    identity[place[:from_identities]] = True
    each_weight = np.full(len(place), TRANSFER_WEIGHT)
    each_weight[:from_identities] = 1.0
    return Ties(np.stack([keys // max(n, 1), keys % max(n, 1)], axis=1), np.bincount(place, each_weight, len(keys)), identity)


def communities(n: int, ties: Ties, chance: Chance) -> Array:
    """int64[n]: the number of each account's cluster; who is tied to nobody is a cluster of its own."""
    igraph.set_random_number_generator(chance)
    graph = igraph.Graph(n=n, edges=ties.pairs)
    found = graph.community_leiden("CPM", weights=ties.weight, resolution=DENSITY, n_iterations=ITERATIONS)
    return np.array(found.membership, np.int64)


def _sharing(accounts: Array, tokens: Array, n: int, hub: int) -> Array:
    """Each pair of accounts (as smaller * n + larger) for each token that both have, if no more than `hub` accounts have it."""
    given = (tokens >= 0) & (accounts >= 0)
    uses = np.unique(tokens[given] * n + accounts[given])
    token, account = uses // max(n, 1), uses % max(n, 1)
    few = np.bincount(token)[token] <= hub if len(token) else np.empty(0, np.bool_)
    token, account = token[few], account[few]
    pairs = [np.empty(0, np.int64)]
    for step in range(1, hub):
        both = np.flatnonzero(token[:-step] == token[step:])
        if not len(both):
            break
        pairs.append(account[both] * n + account[both + step])
    return np.concatenate(pairs)


def _paying(accounts: Array, counterparties: Array, n: int, hub: int) -> Array:
    """Each pair of accounts between which money went, once, if neither has more than `hub` counterparties."""
    given = (accounts >= 0) & (counterparties >= 0) & (accounts != counterparties)
    low, high = np.minimum(accounts, counterparties)[given], np.maximum(accounts, counterparties)[given]
    pairs = np.unique(low * n + high)
    low, high = pairs // max(n, 1), pairs % max(n, 1)
    degree = np.bincount(np.concatenate([low, high]), minlength=n)
    small: Array = pairs[(degree[low] <= hub) & (degree[high] <= hub)]
    return small


def _codes(column: pa.ChunkedArray) -> Array:
    """int64: a number for each text of a column, -1 for null; numbers mean nothing outside this column."""
    encoded = column.dictionary_encode()  # all chunks by one dictionary, without a copy of the texts
    codes = [pc.fill_null(chunk.indices.cast(pa.int64()), -1).to_numpy(zero_copy_only=False) for chunk in encoded.chunks]
    return np.concatenate([np.empty(0, np.int64), *codes])


def _numbers(column: Any, names: Any) -> Array:
    """int64: the place of each text of a column in `names`, -1 where it is not there."""
    places: Array = pc.fill_null(pc.index_in(column, names).cast(pa.int64()), -1).to_numpy()
    return places
