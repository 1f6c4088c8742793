"""The catalogue: every feature, one row each. Serving, backfill, training and notebooks all read these rows and nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np

from features.fact import ACCOUNT, CARD, DEVICE, ENTITIES, FACTS
from features.layout import Cap, LogLayout, ProfileLayout, content_hash, log_layouts
from features.plan import program_of
from features.row import (
    RECEIVED,
    REMOTE,
    SMALL,
    SPENT,
    Capped,
    Feature,
    Fold,
    Known,
    age,
    checked,
    count,
    days,
    decline_ratio,
    declines,
    differs_from_known,
    distance_km,
    distinct,
    hours,
    known,
    known_age,
    log_capped,
    maximum,
    minutes,
    near_own_hour,
    novel,
    over_known,
    own,
    own_differs,
    own_kind,
    own_log,
    own_missing,
    parts,
    ratio_to_mean,
    share,
    since_last,
    speed_kmh,
    total,
    zscore,
)


@dataclass(frozen=True, eq=False)
class Catalogue:
    """A table of features with what follows from it: names, families, the logs and profiles to read, and the compiled plan."""

    rows: tuple[Feature, ...]
    cap: Cap = field(default_factory=Cap)

    def __post_init__(self) -> None:
        for row in self.rows:
            checked(row)
        assert len(set(self.names)) == len(self.names), "two rows have the same name"

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The columns of a vector, in order."""
        return tuple(row.name for row in self.rows)

    @cached_property
    def index(self) -> dict[str, int]:
        """The column of each name."""
        return {name: column for column, name in enumerate(self.names)}

    @cached_property
    def reason_of(self) -> tuple[str, ...]:
        """The reason code of each column."""
        return tuple(row.reason for row in self.rows)

    @cached_property
    def families(self) -> dict[str, tuple[int, ...]]:
        """The columns of each family."""
        names = dict.fromkeys(row.family for row in self.rows)
        return {name: tuple(i for i, row in enumerate(self.rows) if row.family == name) for name in names}

    @cached_property
    def catalogue_id(self) -> str:
        """Hash of everything that decides a vector's numbers: rows, caps and how facts are stored. Texts do not count."""
        facts = [(fact.name, fact.width, fact.zero_is_missing) for fact in FACTS]
        return "cat_" + content_hash(repr(([(row.name, row.shape) for row in self.rows], self.cap, facts)), 16)

    @cached_property
    def logs(self) -> tuple[str, ...]:
        """The entity kinds that have a log, in the order in which a vector's positions are given."""
        read = {part.entity for row in self.rows for part in parts(row.shape.expression) if isinstance(part, Fold | Capped)}
        return tuple(entity.name for entity in ENTITIES if entity in read)

    @cached_property
    def profiles(self) -> tuple[str, ...]:
        """The entity kinds whose profile is read."""
        read = {part.entity for row in self.rows for part in parts(row.shape.expression) if isinstance(part, Known)}
        return tuple(entity.name for entity in ENTITIES if entity in read)

    @cached_property
    def log_layouts(self) -> tuple[LogLayout, ...]:
        """The layout of each log, in the order of `logs`."""
        return log_layouts(self.rows, self.logs)

    @cached_property
    def profile_layouts(self) -> tuple[ProfileLayout, ...]:
        """The layout of each profile, in the order of `profiles`."""
        return tuple(ProfileLayout(kind) for kind in self.profiles)

    @cached_property
    def log_fields(self) -> tuple[str, ...]:
        """The field of a transaction that names the entity of each log."""
        return tuple(entity.field for entity in ENTITIES if entity.name in self.logs)

    @cached_property
    def profile_fields(self) -> tuple[str, ...]:
        """The field of a transaction that names the entity of each profile."""
        return tuple(entity.field for entity in ENTITIES if entity.name in self.profiles)

    @cached_property
    def longest_ms(self) -> int:
        """The longest window, milliseconds."""
        windows = [part.window.ms for row in self.rows for part in parts(row.shape.expression) if isinstance(part, Fold)]
        return max(windows, default=0)

    @cached_property
    def keep_ms(self) -> int:
        """How much older than the newest a row may be before it is trimmed, milliseconds."""
        return self.longest_ms + self.cap.slack_ms

    @cached_property
    def program(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The rows as the kernel reads them."""
        return program_of(self.rows, self.log_layouts, self.profile_layouts, self.cap, self.longest_ms)

    def extended(self, rows: Iterable[Feature]) -> Catalogue:
        """This catalogue with more rows at its end; its own columns keep their numbers."""
        return Catalogue((*self.rows, *rows), self.cap)


VELOCITY, TESTING, TRAVEL, COUNTRY = "velocity", "card_testing", "impossible_travel", "unusual_country"
NOVELTY, REMOTE_FRAUD, TAKEOVER, MULE = "mcc_novelty", "card_not_present", "account_takeover", "money_mule"
SYNTHETIC, BIOMETRICS, FINGERPRINT, DEGRADED = "synthetic_identity", "behavioural_biometrics", "device_change", "degraded"

_A = "amount_minor"

velocity, geographic, device = partial(Feature, "velocity"), partial(Feature, "geographic"), partial(Feature, "device")
behavioural, memory = partial(Feature, "behavioural"), partial(Feature, "memory")
network = partial(Feature, "network")

# fmt: off
CATALOGUE = Catalogue(
    (
        # Velocity: how much, how often, how many different.
        velocity(count(of=CARD, window=minutes(1)), "many_card_payments_1m", VELOCITY,
                 "Payments on the card within a minute: a script, not a person"),
        velocity(count(of=CARD, window=minutes(10)), "many_card_payments_10m", VELOCITY,
                 "Payments on the card within ten minutes: a stolen card is emptied fast"),
        velocity(count(of=CARD, window=hours(1)), "many_card_payments_1h", VELOCITY, "Payments on the card within an hour"),
        velocity(count(of=CARD, window=hours(24)), "many_card_payments_24h", VELOCITY, "Payments on the card within a day"),
        velocity(count(of=CARD, window=days(7)), "many_card_payments_7d", VELOCITY,
                 "Payments on the card within a week: the baseline of the shorter counts"),
        velocity(total(_A, of=CARD, window=hours(1)), "high_card_spend_1h", VELOCITY, "Spent with the card within an hour, minor units"),
        velocity(total(_A, of=CARD, window=hours(24)), "high_card_spend_24h", VELOCITY, "Spent with the card within a day, minor units"),
        velocity(total(_A, of=CARD, window=days(7)), "high_card_spend_7d", VELOCITY, "Spent with the card within a week, minor units"),
        velocity(total(_A, of=CARD, window=days(30)), "high_card_spend_30d", VELOCITY, "Spent with the card within 30 days, minor units"),
        velocity(maximum(_A, of=CARD, window=hours(24)), "large_card_payment_24h", VELOCITY, "Largest payment of the card within a day, minor units"),
        velocity(distinct("merchant_id", of=CARD, window=hours(1)), "many_card_merchants_1h", TESTING,
                 "Different merchants within an hour: stolen numbers are tried around"),
        velocity(distinct("merchant_id", of=CARD, window=hours(24)), "many_card_merchants_24h", TESTING, "Different merchants within a day"),
        velocity(declines(of=CARD, window=hours(1)), "many_card_declines_1h", TESTING, "Declines of the card within an hour: somebody is guessing"),
        velocity(declines(of=CARD, window=hours(24)), "many_card_declines_24h", TESTING, "Declines of the card within a day"),
        velocity(decline_ratio(of=CARD, window=hours(24)), "high_card_decline_ratio_24h", TESTING,
                 "Share of the card's attempts of a day that were declined"),
        velocity(count(of=CARD, window=hours(1), where=(SPENT, SMALL), called="small_count"), "many_small_card_payments_1h", TESTING,
                 "Payments below five units within an hour: testers try small"),
        velocity(since_last(of=CARD), "quick_card_repeat", VELOCITY, "Seconds since the card's last payment", "low"),
        velocity(count(of=ACCOUNT, window=hours(1)), "many_account_payments_1h", VELOCITY,
                 "Payments of the account within an hour, all cards and transfers"),
        velocity(count(of=ACCOUNT, window=hours(24)), "many_account_payments_24h", VELOCITY, "Payments of the account within a day"),
        velocity(count(of=ACCOUNT, window=days(7)), "many_account_payments_7d", VELOCITY, "Payments of the account within a week"),
        velocity(count(of=ACCOUNT, window=days(30)), "many_account_payments_30d", VELOCITY, "Payments of the account within 30 days"),
        velocity(total(_A, of=ACCOUNT, window=hours(24)), "high_account_spend_24h", TAKEOVER,
                 "Money that left the account within a day, minor units"),
        velocity(total(_A, of=ACCOUNT, window=days(7)), "high_account_spend_7d", TAKEOVER, "Money that left the account within a week, minor units"),
        velocity(total(_A, of=ACCOUNT, window=days(30)), "high_account_spend_30d", TAKEOVER,
                 "Money that left the account within 30 days, minor units"),
        velocity(total(_A, of=ACCOUNT, window=hours(24), where=(RECEIVED,), called="received"), "high_account_inflow_24h", MULE,
                 "Money that came in within a day, minor units: a mule is filled before it is emptied"),
        velocity(distinct("merchant_id", of=ACCOUNT, window=hours(24)), "many_account_merchants_24h", VELOCITY,
                 "Different merchants paid by the account within a day"),
        velocity(declines(of=ACCOUNT, window=hours(24)), "many_account_declines_24h", TESTING, "Declines of the account within a day"),
        velocity(since_last(of=ACCOUNT), "quick_account_repeat", VELOCITY, "Seconds since the account's last payment", "low"),
        # Geography: where the card is, against where it can be.
        geographic(distance_km(of=CARD), "far_from_last_place", TRAVEL, "Kilometres from where the card was last present"),
        geographic(speed_kmh(of=CARD), "impossible_travel", TRAVEL,
                   "Speed from where the card was last present, km/h: above an airliner's the card is in two places"),
        geographic(novel("country", of=CARD), "new_country_for_card", COUNTRY, "The card was not used in this country in 90 days"),
        geographic(distinct("country", of=CARD, window=hours(24)), "many_card_countries_24h", TRAVEL,
                   "Countries that the card was used in within a day"),
        geographic(distinct("country", of=ACCOUNT, window=days(7)), "many_account_countries_7d", COUNTRY,
                   "Countries that the account paid in within a week"),
        geographic(own_differs("ip_country", "card_country", "ip_country_differs_card"), "ip_country_not_card_country", REMOTE_FRAUD,
                   "The buyer's IP address is in another country than the card's issuer"),
        geographic(own_differs("country", "card_country", "country_differs_card"), "foreign_merchant", COUNTRY,
                   "The merchant is in another country than the card's issuer"),
        geographic(differs_from_known("country", ACCOUNT, "home_country", "country_differs_home"), "away_from_home_country", COUNTRY,
                   "The merchant is not in the holder's home country"),
        # Device: how well the thing that pays is known.
        device(age(of=DEVICE), "young_device", FINGERPRINT, "Seconds since the device was first seen, 90 days at most", "low"),
        device(novel("device", of=CARD), "new_device_for_card", FINGERPRINT, "The card was not used from this device in 90 days"),
        device(novel("device", of=ACCOUNT), "new_device_for_account", TAKEOVER, "The account was not used from this device in 90 days"),
        device(distinct("card", of=DEVICE, window=hours(24)), "many_cards_on_device_24h", TESTING,
               "Cards used from the device within a day: a shop for stolen numbers"),
        device(distinct("card", of=DEVICE, window=days(30)), "many_cards_on_device_30d", TESTING, "Cards used from the device within 30 days"),
        device(distinct("account", of=DEVICE, window=days(30)), "many_accounts_on_device_30d", SYNTHETIC,
               "Accounts used from the device within 30 days: invented people share devices"),
        device(distinct("device", of=CARD, window=days(30)), "many_devices_for_card_30d", TAKEOVER, "Devices that used the card within 30 days"),
        device(count(of=DEVICE, window=hours(1)), "many_device_payments_1h", VELOCITY, "Payments from the device within an hour"),
        device(declines(of=DEVICE, window=hours(24)), "many_device_declines_24h", TESTING, "Declines on the device within a day"),
        device(own_missing("device"), "no_device_given", FINGERPRINT, "The payment came without a device fingerprint"),
        # Behaviour: the payment against the holder's own habits.
        behavioural(own(_A), "large_amount", VELOCITY, "The amount itself, minor units"),
        behavioural(own_log(_A), "large_amount", VELOCITY, "The amount on a logarithmic scale, which models split better"),
        behavioural(ratio_to_mean(_A, of=CARD, window=days(30)), "amount_above_usual", TAKEOVER, "The amount over the card's mean of 30 days"),
        behavioural(zscore(_A, of=CARD, window=days(30)), "amount_far_from_usual", TAKEOVER,
                    "How many of the card's own spreads the amount lies above its mean of 30 days"),
        behavioural(ratio_to_mean(_A, of=ACCOUNT, window=days(30)), "amount_above_account_usual", TAKEOVER,
                    "The amount over the account's mean of 30 days"),
        behavioural(share((near_own_hour(2),), of=CARD, window=days(90), called="hour"), "unusual_hour", TAKEOVER,
                    "Share of the card's payments within two hours of this time of day", "low"),
        behavioural(novel("mcc", of=CARD), "new_merchant_category", NOVELTY, "The card did not pay in this merchant category in 90 days"),
        behavioural(novel("merchant_id", of=CARD), "new_merchant", NOVELTY, "The card did not pay this merchant in 90 days"),
        behavioural(novel("counterparty", of=ACCOUNT), "new_beneficiary", MULE, "The account did not move money with this other account in 90 days"),
        behavioural(share((REMOTE,), of=CARD, window=days(30), called="not_present"), "many_remote_payments", REMOTE_FRAUD,
                    "Share of the card's payments of 30 days without the card being there"),
        behavioural(own_kind(REMOTE, "not_present"), "card_not_present", REMOTE_FRAUD,
                    "The card is not there: e-commerce, mail or telephone order, recurring"),
        behavioural(own("keystroke_dwell_ms"), "unusual_typing", BIOMETRICS,
                    "How long keys were held, milliseconds: bots and remote control type evenly", "low"),
        behavioural(own("keystroke_flight_ms"), "unusual_typing", BIOMETRICS, "From key to key, milliseconds", "low"),
        behavioural(own("pointer_speed_px_s"), "unusual_pointer", BIOMETRICS, "Pointer speed, pixels a second"),
        behavioural(own("session_age_s"), "short_session", BIOMETRICS, "Seconds since the session began: a script does not browse", "low"),
        behavioural(own_missing("keystroke_dwell_ms", "biometrics"), "no_biometrics", BIOMETRICS,
                    "The payment came without typing rhythm: a fact of its own"),
        behavioural(known_age(ACCOUNT, "opened_at_ms", "open"), "young_account", SYNTHETIC, "Seconds since the account was opened", "low"),
        behavioural(over_known(_A, ACCOUNT, "credit_limit_minor", "amount_over_limit"), "large_part_of_limit", SYNTHETIC,
                    "The amount over the credit limit: synthetic identities spend up to it at once"),
        # Memory: what the vector could not see.
        memory(log_capped(of=CARD), "card_history_cut", DEGRADED, "The card had more payments in 90 days than its log keeps"),
        memory(log_capped(of=ACCOUNT), "account_history_cut", DEGRADED, "The account had more payments in 90 days than its log keeps"),
        memory(log_capped(of=DEVICE), "device_history_cut", DEGRADED, "The device had more payments in 90 days than its log keeps"),
        # Network: whom the account belongs with, as the last run of `holdfast cluster` knew it.
        network(known(ACCOUNT, "cluster_size"), "large_cluster", SYNTHETIC,
                "Accounts tied to this one by shared identities or transfers: invented people come in groups"),
        network(known(ACCOUNT, "cluster_fraud_share"), "cluster_with_fraud", MULE, "Share of the other accounts in its cluster with a fraud learned"),
        network(known(ACCOUNT, "shared_identities"), "shared_identities", SYNTHETIC,
                "Other accounts with a device, e-mail, phone or address of this one"),
    )
)
# fmt: on
"""The features of this release: about seventy numbers, each one row."""
