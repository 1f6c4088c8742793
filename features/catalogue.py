"""The catalogue: every feature, one row each. Serving, backfill, training and notebooks all read these rows and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np

from features.fact import (
    ACCOUNT,
    ADDRESS,
    BIN,
    CARD,
    COUNTERPARTY,
    CUSTOMER,
    DEVICE,
    EMAIL,
    ENTITIES,
    FACTS,
    IP,
    MERCHANT,
    PAYEE,
    PHONE,
    TERMINAL,
    Entity,
)
from features.fact import COUNTRY as COUNTRIES
from features.layout import Cap, LogLayout, ProfileLayout, content_hash, log_layouts
from features.plan import program_of
from features.row import (
    ANY_PAYMENT,
    BENEFICIARIES,
    CHANGES,
    LOGIN_FAILURES,
    LOGINS,
    RECEIVED,
    REMOTE,
    SAME_WEEKDAY,
    SMALL,
    SPENT,
    Capped,
    Feature,
    Fold,
    Known,
    age,
    below_own,
    centre_km,
    checked,
    count,
    count_if_newcomer,
    count_if_spending,
    cycle_of_three,
    cycle_of_two,
    days,
    decline_ratio,
    declines,
    differs_from_known,
    distance_km,
    distinct,
    dormant,
    fraud_share,
    given,
    hours,
    idle,
    just_under,
    known,
    known_age,
    log_capped,
    maximum,
    mean,
    minutes,
    moved,
    near_own_hour,
    new_place,
    newcomers,
    novel,
    out_over_in,
    over_known,
    own,
    own_differs,
    own_kind,
    own_log,
    own_missing,
    own_yes,
    pair_age,
    parts,
    parts_changed,
    per_day_of_age,
    ratio_to_mean,
    same,
    share,
    since,
    since_last,
    speed_kmh,
    spent_over_known,
    surge,
    total,
    woken,
    zscore,
)
from features.tally import TallyLayout, TallyPlan, tally_layouts, tally_plan
from schemas.decision import Decision


@dataclass(frozen=True, eq=False)
class Catalogue:
    """A table of features with what follows from it: names, families, the logs and profiles to read, and the compiled plan."""

    rows: tuple[Feature, ...]
    cap: Cap = field(default_factory=Cap)
    memory: Mapping[str, Literal["log", "tally"]] = field(default_factory=dict)
    """By entity kind, the memory that it has instead of its own: an entity quiet enough for a log is remembered exactly."""
    reach_ms: int = 0
    """The longest window that logs are kept for, if it is longer than that of these rows: they are a part of a larger catalogue."""
    delays: Mapping[str, int] = field(default_factory=dict)
    """`log_delays` of that larger catalogue: labels lie in its logs, where caps count them, whether or not these rows read any."""

    def __post_init__(self) -> None:
        for row in self.rows:
            checked(row)
        assert len(set(self.names)) == len(self.names), "two rows have the same name"

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The columns of a vector, in order."""
        return tuple(row.name for row in self.rows)

    def has(self, decision: Decision) -> bool:
        """Whether a decision's vector is one of this catalogue."""
        return decision.catalogue_id == self.catalogue_id and len(decision.vector) == 8 * len(self.names)

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
        facts = [(fact.name, fact.bits, fact.zero_is_missing) for fact in FACTS]
        return "cat_" + content_hash(
            repr(([(row.name, row.shape) for row in self.rows], self.cap, sorted(self.memory.items()), facts, *self._reach)), 16
        )

    @property
    def _reach(self) -> tuple[object, ...]:
        return (*((self.reach_ms,) if self.reach_ms else ()), *self.delays.items())

    @cached_property
    def log_entities(self) -> tuple[Entity, ...]:
        """The entities whose log is read, in the order in which a vector's positions are given."""
        return self._remembered("log")

    @cached_property
    def logs(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(entity.name for entity in self.log_entities)

    @cached_property
    def tallies(self) -> tuple[str, ...]:
        """The entity kinds that have a tally."""
        return tuple(entity.name for entity in self._remembered("tally"))

    def _remembered(self, memory: str) -> tuple[Entity, ...]:
        """The entities that a row reads and that have this kind of memory."""
        read = {part.entity for row in self.rows for part in parts(row.shape.expression) if isinstance(part, Fold | Capped)}
        return tuple(entity for entity in ENTITIES if entity in read and self.memory.get(entity.name, entity.memory) == memory)

    def _folds(self, kinds: tuple[str, ...]) -> list[Fold]:
        """The folds that read these entity kinds."""
        every = (part for row in self.rows for part in parts(row.shape.expression))
        return [part for part in every if isinstance(part, Fold) and part.entity.name in kinds]

    @cached_property
    def tally_layouts(self) -> tuple[TallyLayout, ...]:
        """The layout of each tally, in the order of `tallies`."""
        return tally_layouts(self._folds(self.tallies), self._remembered("tally"))

    @cached_property
    def tally_plan(self) -> TallyPlan:
        """The tallies as their kernel reads them."""
        return tally_plan(self.tally_layouts)

    @cached_property
    def tally_fields(self) -> tuple[str, ...]:
        """The field of a transaction that names the entity of each tally."""
        return tuple(entity.field for entity in self._remembered("tally"))

    @cached_property
    def profiles(self) -> tuple[str, ...]:
        """The entity kinds whose profile is read."""
        read = {part.entity for row in self.rows for part in parts(row.shape.expression) if isinstance(part, Known)}
        return tuple(entity.name for entity in ENTITIES if entity in read)

    @cached_property
    def log_layouts(self) -> tuple[LogLayout, ...]:
        """The layout of each log, in the order of `logs`; a log that two entities read has one."""
        return log_layouts(self.rows, self.log_entities)

    @cached_property
    def profile_layouts(self) -> tuple[ProfileLayout, ...]:
        """The layout of each profile, in the order of `profiles`."""
        return tuple(ProfileLayout(kind) for kind in self.profiles)

    @cached_property
    def log_fields(self) -> tuple[str, ...]:
        """The field of a transaction that names the entity of each log."""
        return tuple(entity.field for entity in self.log_entities)

    @cached_property
    def profile_fields(self) -> tuple[str, ...]:
        """The field of a transaction that names the entity of each profile."""
        return tuple(entity.field for entity in ENTITIES if entity.name in self.profiles)

    @cached_property
    def longest_ms(self) -> int:
        """The longest window over a log, milliseconds."""
        return max((fold.reach_ms for fold in self._folds(self.logs)), default=0) if self.reach_ms == 0 else self.reach_ms

    @cached_property
    def log_delays(self) -> Mapping[str, int]:
        """By log that labels must be told to, because a row counts frauds there: the delay after which its transactions mature, milliseconds."""
        delays = {(fold.entity.name, fold.delay.ms) for fold in self._folds(self.logs) if fold.delay}
        delays |= {(name, delay_ms) for name, delay_ms in self.delays.items() if name in self.logs}
        assert len(delays) == len({name for name, _ in delays}), "all delays of a log are the same: a label has one place in it"
        return dict(sorted(delays))

    @cached_property
    def keep_ms(self) -> int:
        """How much older than the newest a row may be before it is trimmed, milliseconds."""
        return self.longest_ms + self.cap.slack_ms

    @cached_property
    def program(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The rows as the kernel reads them."""
        told = self.tally_plan.folds
        return program_of(self.rows, self.log_entities, self.log_layouts, self.profile_layouts, told, self.cap, self.longest_ms)

    def extended(self, rows: Iterable[Feature]) -> Catalogue:
        """This catalogue with more rows at its end; its own columns keep their numbers."""
        return Catalogue((*self.rows, *rows), self.cap, self.memory)

    def only(self, names: Iterable[str]) -> Catalogue:
        """The rows of these names, in this order, with the numbers that they have here: logs are kept as long as for all, labels in them."""
        return Catalogue(tuple(self.rows[self.index[name]] for name in names), self.cap, self.memory, self.longest_ms, self.log_delays)


VELOCITY, TESTING, TRAVEL, COUNTRY = "velocity", "card_testing", "impossible_travel", "unusual_country"
NOVELTY, REMOTE_FRAUD, TAKEOVER, MULE = "mcc_novelty", "card_not_present", "account_takeover", "money_mule"
SYNTHETIC, BIOMETRICS, FINGERPRINT, DEGRADED = "synthetic_identity", "behavioural_biometrics", "device_change", "degraded"
STRUCTURING, COMPROMISE, CLUSTER, CYCLE = "structuring", "terminal_compromise", "transaction_cluster", "money_cycle"

_A = "amount_minor"
MATURE = days(7)
"""How long after a transaction its label is taken to be known."""

velocity, geographic, device = partial(Feature, "velocity"), partial(Feature, "geographic"), partial(Feature, "device")
behavioural, takeover, identity = partial(Feature, "behavioural"), partial(Feature, "takeover"), partial(Feature, "identity")
network, merchant, memory = partial(Feature, "network"), partial(Feature, "merchant"), partial(Feature, "memory")

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
        velocity(total(_A, of=CARD, window=hours(1)), "high_card_spend_1h", VELOCITY,
                 "Spent with the card within an hour, declined attempts too, minor units"),
        velocity(total(_A, of=CARD, window=hours(24)), "high_card_spend_24h", VELOCITY,
                 "Spent with the card within a day, declined attempts too, minor units"),
        velocity(total(_A, of=CARD, window=days(7)), "high_card_spend_7d", VELOCITY,
                 "Spent with the card within a week, declined attempts too, minor units"),
        velocity(total(_A, of=CARD, window=days(30)), "high_card_spend_30d", VELOCITY,
                 "Spent with the card within 30 days, declined attempts too, minor units"),
        velocity(maximum(_A, of=CARD, window=hours(24)), "large_card_payment_24h", VELOCITY,
                 "Largest payment of the card within a day, declined or not, minor units"),
        velocity(distinct("merchant_id", of=CARD, window=hours(1)), "many_card_merchants_1h", TESTING,
                 "Different merchants within an hour: stolen numbers are tried around"),
        velocity(distinct("merchant_id", of=CARD, window=hours(24)), "many_card_merchants_24h", TESTING, "Different merchants within a day"),
        velocity(declines(of=CARD, window=hours(1)), "many_card_declines_1h", TESTING, "Declines of the card within an hour: somebody is guessing"),
        velocity(declines(of=CARD, window=hours(24)), "many_card_declines_24h", TESTING, "Declines of the card within a day"),
        velocity(decline_ratio(of=CARD, window=hours(24)), "high_card_decline_ratio_24h", TESTING,
                 "Share of the card's attempts of a day that were declined"),
        velocity(count(of=CARD, window=hours(1), where=(SPENT, SMALL), called="small_count"), "many_small_card_payments_1h", TESTING,
                 "Payments of less than 500 minor units within an hour: testers try small"),
        velocity(since_last(of=CARD), "quick_card_repeat", VELOCITY, "Seconds since the card's last payment", "low"),
        velocity(count(of=ACCOUNT, window=hours(1)), "many_account_payments_1h", VELOCITY,
                 "Payments of the account within an hour, all cards and transfers"),
        velocity(count(of=ACCOUNT, window=hours(24)), "many_account_payments_24h", VELOCITY, "Payments of the account within a day"),
        velocity(count(of=ACCOUNT, window=days(7)), "many_account_payments_7d", VELOCITY, "Payments of the account within a week"),
        velocity(count(of=ACCOUNT, window=days(30)), "many_account_payments_30d", VELOCITY, "Payments of the account within 30 days"),
        velocity(total(_A, of=ACCOUNT, window=hours(24)), "high_account_spend_24h", TAKEOVER,
                 "Money asked of the account within a day, declined attempts too, minor units"),
        velocity(total(_A, of=ACCOUNT, window=days(7)), "high_account_spend_7d", TAKEOVER,
                 "Money asked of the account within a week, declined attempts too, minor units"),
        velocity(total(_A, of=ACCOUNT, window=days(30)), "high_account_spend_30d", TAKEOVER,
                 "Money asked of the account within 30 days, declined attempts too, minor units"),
        velocity(total(_A, of=ACCOUNT, window=hours(24), where=(RECEIVED,), called="received"), "high_account_inflow_24h", MULE,
                 "Money that came in within a day, minor units: a mule is filled before it is emptied"),
        velocity(distinct("merchant_id", of=ACCOUNT, window=hours(24)), "many_account_merchants_24h", VELOCITY,
                 "Different merchants paid by the account within a day"),
        velocity(declines(of=ACCOUNT, window=hours(24)), "many_account_declines_24h", TESTING, "Declines of the account within a day"),
        velocity(since_last(of=ACCOUNT), "quick_account_repeat", VELOCITY, "Seconds since the account's last payment", "low"),
        velocity(count(of=CARD, window=days(30)), "many_card_payments_30d", VELOCITY,
                 "Payments on the card within 30 days: how much it is used at all"),
        velocity(mean(_A, of=CARD, window=days(30)), "high_card_mean_30d", VELOCITY, "Mean payment of the card within 30 days, minor units"),
        velocity(distinct("terminal_id", of=ACCOUNT, window=hours(24)), "many_account_terminals_24h", COMPROMISE,
                 "Different terminals that the account paid at within a day: a copied card goes around"),
        velocity(count(of=ACCOUNT, window=days(7), where=(ANY_PAYMENT, just_under(100_000)), called="just_under_count"),
                 "amounts_under_a_threshold", STRUCTURING,
                 "Amounts at most a tenth below 100,000, 1,000,000 ... minor units within a week, in or out: many say more than one"),
        velocity(count(of=CUSTOMER, window=hours(24)), "many_customer_payments_24h", VELOCITY,
                 "Payments of the customer within a day, over all accounts"),
        velocity(count(of=CUSTOMER, window=days(7)), "many_customer_payments_7d", VELOCITY,
                 "Payments of the customer within a week, over all accounts"),
        velocity(total(_A, of=CUSTOMER, window=hours(24)), "high_customer_spend_24h", TAKEOVER,
                 "Money asked of all accounts of the customer within a day, declined attempts too, minor units"),
        velocity(total(_A, of=CUSTOMER, window=days(7)), "high_customer_spend_7d", TAKEOVER,
                 "Money asked of all accounts of the customer within a week, declined attempts too, minor units"),
        velocity(count(of=EMAIL, window=hours(24)), "many_email_payments_24h", TESTING, "Payments that gave this e-mail address within a day"),
        velocity(count(of=PHONE, window=hours(24)), "many_phone_payments_24h", TESTING, "Payments that gave this phone number within a day"),
        velocity(distinct("card", of=EMAIL, window=hours(24)), "many_cards_on_email_24h", TESTING,
                 "Cards that came with this e-mail address within a day: a shop for stolen numbers"),
        velocity(distinct("card", of=EMAIL, window=days(30)), "many_cards_on_email_30d", TESTING,
                 "Cards that came with this e-mail address within 30 days"),
        velocity(distinct("card", of=PHONE, window=days(30)), "many_cards_on_phone_30d", TESTING,
                 "Cards that came with this phone number within 30 days"),
        # Geography: where the card is, against where it can be.
        geographic(distance_km(of=CARD), "far_from_last_place", TRAVEL, "Kilometres from where the card was last present"),
        geographic(speed_kmh(of=CARD), "impossible_travel", TRAVEL,
                   "Speed from where the card was last present, km/h: above an airliner's the card is in two places"),
        geographic(novel("country", of=CARD), "new_country_for_card", COUNTRY, "The card paid no merchant of this country in 90 days"),
        geographic(distinct("country", of=CARD, window=hours(24)), "many_card_countries_24h", TRAVEL,
                   "Countries of the merchants that the card paid within a day, remote ones too"),
        geographic(distinct("country", of=ACCOUNT, window=days(7)), "many_account_countries_7d", COUNTRY,
                   "Countries of the merchants that the account paid within a week, remote ones too"),
        geographic(own_differs("ip_country", "card_country", "ip_country_differs_card"), "ip_country_not_card_country", REMOTE_FRAUD,
                   "The buyer's IP address is in another country than the card's issuer"),
        geographic(own_differs("country", "card_country", "country_differs_card"), "foreign_merchant", COUNTRY,
                   "The merchant is in another country than the card's issuer"),
        geographic(own_differs("ip_country", "country", "ip_country_differs_merchant"), "ip_country_not_merchant_country", REMOTE_FRAUD,
                   "The buyer's IP address is in another country than the merchant"),
        geographic(differs_from_known("country", ACCOUNT, "home_country", "country_differs_home"), "away_from_home_country", COUNTRY,
                   "The merchant is not in the holder's home country"),
        geographic(distance_km(of=CARD, places="any"), "far_from_any_last_place", TRAVEL,
                   "Kilometres from the last place of any payment of the card, card present or not"),
        geographic(speed_kmh(of=CARD, places="any"), "fast_from_any_last_place", TRAVEL,
                   "Speed from the last place of any payment of the card, km/h"),
        geographic(centre_km(of=CARD, window=days(30)), "far_from_usual_centre", COUNTRY,
                   "Kilometres from the centre of the card's places of 30 days"),
        geographic(new_place(of=CARD), "new_place_for_card", COUNTRY, "The card was not used within about a kilometre of here in 90 days"),
        geographic(distinct("country", of=CARD, window=days(30)), "many_card_countries_30d", COUNTRY,
                   "Countries of the merchants that the card paid within 30 days: a traveller's card or a sold number"),
        geographic(novel("ip_country", of=ACCOUNT), "new_ip_country_for_account", TAKEOVER,
                   "No payment of the account came from an IP address of this country in 90 days"),
        # Device: how well the thing that pays is known.
        device(age(of=DEVICE), "young_device", FINGERPRINT,
               "Seconds since the first payment from the device within 90 days; missing without one", "low"),
        device(novel("device", of=CARD), "new_device_for_card", FINGERPRINT, "The card did not pay from this device in 90 days"),
        device(novel("device", of=ACCOUNT), "new_device_for_account", TAKEOVER,
               "The account did not pay from this device in 90 days, whether or not it logged in"),
        device(distinct("card", of=DEVICE, window=hours(24)), "many_cards_on_device_24h", TESTING,
               "Cards used from the device within a day: a shop for stolen numbers"),
        device(distinct("card", of=DEVICE, window=days(30)), "many_cards_on_device_30d", TESTING, "Cards used from the device within 30 days"),
        device(distinct("account", of=DEVICE, window=days(30)), "many_accounts_on_device_30d", SYNTHETIC,
               "Accounts used from the device within 30 days: invented people share devices"),
        device(distinct("device", of=CARD, window=days(30)), "many_devices_for_card_30d", TAKEOVER,
               "Devices from which the card paid within 30 days"),
        device(count(of=DEVICE, window=hours(1)), "many_device_payments_1h", VELOCITY, "Payments from the device within an hour"),
        device(declines(of=DEVICE, window=hours(24)), "many_device_declines_24h", TESTING, "Declines on the device within a day"),
        device(own_missing("device"), "no_device_given", FINGERPRINT, "The payment came without a device fingerprint"),
        device(pair_age("device", of=CARD), "card_new_on_device", FINGERPRINT,
               "Seconds since the card's first payment from this device within 90 days; missing without one", "low"),
        device(pair_age("device", of=ACCOUNT), "account_new_on_device", TAKEOVER,
               "Seconds since the account's first payment from this device within 90 days; missing without one", "low"),
        device(distinct("device", of=ACCOUNT, window=days(30)), "many_devices_for_account_30d", TAKEOVER,
               "Devices from which the account paid within 30 days"),
        device(parts_changed(of=DEVICE), "fingerprint_changed", FINGERPRINT,
               "Parts of the fingerprint (of six) that differ from this device's last: a copy of its token"),
        device(parts_changed(of=ACCOUNT), "fingerprint_other_than_usual", FINGERPRINT,
               "Parts of the fingerprint (of six) that differ from the account's last payment"),
        device(own_yes("emulator"), "emulated_device", FINGERPRINT, "The device is an emulator or a virtual machine: farms have hundreds"),
        device(own_yes("proxy"), "hidden_address", REMOTE_FRAUD, "The address is a known proxy, VPN or Tor exit: where the buyer is, is hidden"),
        device(moved("ip_country", of=DEVICE), "device_in_another_country", TAKEOVER,
               "The device's address was in another country at its last payment"),
        # Behaviour: the payment against the holder's own habits.
        behavioural(own(_A), "large_amount", VELOCITY, "The amount itself, minor units"),
        behavioural(own_log(_A), "large_amount", VELOCITY, "The amount on a logarithmic scale, which models split better"),
        behavioural(ratio_to_mean(_A, of=CARD, window=days(30)), "amount_above_usual", TAKEOVER, "The amount over the card's mean of 30 days"),
        behavioural(zscore(_A, of=CARD, window=days(30)), "amount_far_from_usual", TAKEOVER,
                    "How many of the card's own spreads the amount lies above its mean of 30 days"),
        behavioural(ratio_to_mean(_A, of=ACCOUNT, window=days(30)), "amount_above_account_usual", TAKEOVER,
                    "The amount over the account's mean of 30 days"),
        behavioural(share((near_own_hour(2),), of=CARD, window=days(90), called="hour"), "unusual_hour", TAKEOVER,
                    "Share of the card's payments of 90 days within two hours of this time of day", "low"),
        behavioural(novel("mcc", of=ACCOUNT), "new_merchant_category", NOVELTY, "The account did not pay in this merchant category in 90 days"),
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
        behavioural(share((below_own(_A),), of=CARD, window=days(30), called="below"), "amount_rank_30d", TAKEOVER,
                    "Share of the card's payments of 30 days that were smaller: the amount's exact rank among them"),
        behavioural(share((below_own(_A),), of=CARD, window=days(90), called="below"), "amount_rank_90d", TAKEOVER,
                    "Share of the card's payments of 90 days that were smaller"),
        behavioural(share((SAME_WEEKDAY,), of=CARD, window=days(90), called="weekday"), "unusual_weekday", TAKEOVER,
                    "Share of the card's payments of 90 days on this day of the week (UTC)", "low"),
        behavioural(zscore("dwell", of=CUSTOMER, window=days(30), where=(ANY_PAYMENT, given("dwell"))), "typing_unlike_own", BIOMETRICS,
                    "How many of the customer's own spreads keys were held longer than on average of 30 days"),
        behavioural(zscore("flight", of=CUSTOMER, window=days(30), where=(ANY_PAYMENT, given("flight"))), "typing_unlike_own", BIOMETRICS,
                    "How many of the customer's own spreads the time from key to key was above its mean of 30 days"),
        behavioural(zscore("pointer", of=CUSTOMER, window=days(30), where=(ANY_PAYMENT, given("pointer"))), "pointer_unlike_own", BIOMETRICS,
                    "How many of the customer's own spreads the pointer was faster than on average of 30 days"),
        behavioural(own_missing("keystroke_dwell_ms", "keystroke_flight_ms", called="biometrics"), "no_biometrics", BIOMETRICS,
                    "The payment came without either time of the typing: a fact of its own"),
        behavioural(known_age(ACCOUNT, "opened_at_ms", "open"), "young_account", SYNTHETIC, "Seconds since the account was opened", "low"),
        behavioural(over_known(_A, ACCOUNT, "credit_limit_minor", "amount_over_limit"), "large_part_of_limit", SYNTHETIC,
                    "The amount over the credit limit: synthetic identities spend up to it at once"),
        # Takeover: what happened to the account before the money leaves.
        takeover(count(of=ACCOUNT, window=hours(1), where=(LOGIN_FAILURES,), called="login_failures"), "many_login_failures_1h", TAKEOVER,
                 "Failed logins within an hour: somebody is guessing"),
        takeover(count(of=ACCOUNT, window=hours(24), where=(LOGIN_FAILURES,), called="login_failures"), "many_login_failures_24h", TAKEOVER,
                 "Failed logins within a day"),
        takeover(newcomers("device", of=ACCOUNT, window=hours(24), where=(LOGINS,), called="new_login_devices"), "login_from_new_device", TAKEOVER,
                 "Devices that logged in within a day, and never before in 90 days"),
        takeover(count_if_newcomer("device", of=ACCOUNT, window=hours(24), where=(LOGIN_FAILURES,), newcomer=(LOGINS,), called=
                 "failures_then_new_device"),
                 "failures_then_new_device", TAKEOVER, "Failed logins of a day, if a login followed and a device was new that day; else 0"),
        takeover(count(of=ACCOUNT, window=hours(24), where=(CHANGES,), called="changes"), "account_changed_24h", TAKEOVER,
                 "Changes of credentials, e-mail, phone or address within a day"),
        takeover(count(of=ACCOUNT, window=hours(72), where=(CHANGES,), called="changes"), "account_changed_72h", TAKEOVER,
                 "Changes of credentials, e-mail, phone or address within three days"),
        takeover(since(of=ACCOUNT, where=(CHANGES,), called="change_to_money_out"), "money_out_after_change", TAKEOVER,
                 "Seconds from the last change of credentials, e-mail, phone or address to this payment, if money leaves with it", "low"),
        takeover(count(of=ACCOUNT, window=hours(24), where=(BENEFICIARIES,), called="beneficiaries_added"), "beneficiary_added_24h", TAKEOVER,
                 "Beneficiaries added within a day"),
        takeover(count_if_spending(of=ACCOUNT, window=hours(24), where=(BENEFICIARIES, same("counterparty")), called="payee_added"),
                 "payee_added_24h", TAKEOVER, "The one who is paid was added as a beneficiary within a day"),
        # Identity: invented people share what real ones have alone.
        identity(distinct("account", of=EMAIL, window=days(30)), "many_accounts_on_email_30d", SYNTHETIC,
                 "Accounts that paid with this e-mail address within 30 days"),
        identity(distinct("account", of=EMAIL, window=days(90)), "many_accounts_on_email_90d", SYNTHETIC,
                 "Accounts that paid with this e-mail address within 90 days"),
        identity(distinct("account", of=PHONE, window=days(30)), "many_accounts_on_phone_30d", SYNTHETIC,
                 "Accounts that paid with this phone number within 30 days"),
        identity(distinct("account", of=PHONE, window=days(90)), "many_accounts_on_phone_90d", SYNTHETIC,
                 "Accounts that paid with this phone number within 90 days"),
        identity(distinct("account", of=ADDRESS, window=days(30)), "many_accounts_on_address_30d", SYNTHETIC,
                 "Accounts that paid with this address within 30 days: above a household's number it is a drop"),
        identity(distinct("account", of=ADDRESS, window=days(90)), "many_accounts_on_address_90d", SYNTHETIC,
                 "Accounts that paid with this address within 90 days"),
        identity(distinct("account", of=DEVICE, window=days(90)), "many_accounts_on_device_90d", SYNTHETIC,
                 "Accounts used from the device within 90 days"),
        identity(age(of=EMAIL), "young_email", SYNTHETIC,
                 "Seconds since the first payment with the e-mail address within 90 days; missing without one", "low"),
        identity(age(of=PHONE), "young_phone", SYNTHETIC,
                 "Seconds since the first payment with the phone number within 90 days; missing without one", "low"),
        identity(per_day_of_age(of=EMAIL), "busy_for_its_age", SYNTHETIC,
                 "Payments for each day since the first one with the e-mail address within 90 days"),
        identity(spent_over_known("credit_limit_minor", of=ACCOUNT, window=days(30), called="spent_over_limit"), "limit_spent_up", SYNTHETIC,
                 "Spent within 30 days, this payment and declined attempts too, over the credit limit: who reaches 1 early busts out"),
        # Network: how money goes through accounts.
        network(out_over_in(of=ACCOUNT, window=hours(24)), "money_in_then_out", MULE,
                "What was to leave within a day, this payment and declined attempts too, over what came in: a mule keeps little"),
        network(distinct("counterparty", of=ACCOUNT, window=hours(24), where=(RECEIVED,), called="senders"), "many_senders_24h", MULE,
                "Different accounts that sent money here within a day: fan-in"),
        network(distinct("counterparty", of=ACCOUNT, window=days(7), where=(RECEIVED,), called="senders"), "many_senders_7d", MULE,
                "Different accounts that sent money here within a week"),
        network(distinct("counterparty", of=ACCOUNT, window=hours(24), called="receivers"), "many_receivers_24h", MULE,
                "Different accounts that got money from here within a day: fan-out"),
        network(distinct("counterparty", of=ACCOUNT, window=days(7), called="receivers"), "many_receivers_7d", MULE,
                "Different accounts that got money from here within a week"),
        network(idle(of=ACCOUNT), "idle_account", MULE, "Seconds since any payment, in or out: sleeping accounts are bought"),
        network(woken(_A, of=ACCOUNT), "dormant_account_woken", MULE,
                "Days without any payment, times the amount over the account's mean of 90 days"),
        network(dormant("opened_at_ms", of=ACCOUNT), "dormant_account", MULE, "The account is older than 90 days, and nothing moved in them"),
        network(cycle_of_two(of=ACCOUNT, window=days(7)), "money_sent_back", CYCLE,
                "Payments that came within a week from the one who is paid now: money in a circle of two"),
        network(cycle_of_three(of=ACCOUNT, through=PAYEE, window=days(7)), "money_in_a_circle", CYCLE,
                "Accounts that paid this one and were paid by the one who is paid now, within a week: a circle of three"),
        network(distinct("account", of=COUNTERPARTY, window=hours(24)), "many_payers_of_payee_24h", MULE,
                "Accounts that paid this other account within a day: a collecting account"),
        network(distinct("account", of=COUNTERPARTY, window=days(7)), "many_payers_of_payee_7d", MULE,
                "Accounts that paid this other account within a week"),
        network(age(of=COUNTERPARTY), "young_payee", MULE,
                "Seconds since anybody here first moved money with this other account within 90 days; missing without one", "low"),
        network(known(ACCOUNT, "cluster_size"), "large_cluster", SYNTHETIC,
                "Accounts in its cluster, itself among them, tied by identities or transfers: invented people come in groups"),
        network(known(ACCOUNT, "cluster_fraud_share"), "cluster_with_fraud", MULE, "Share of the other accounts in its cluster with a fraud learned"),
        network(known(ACCOUNT, "shared_identities"), "shared_identities", SYNTHETIC,
                "Other accounts with a device, e-mail, phone or address of this one"),
        # Merchants, terminals, addresses, BINs and countries: what others do there, to a slice of a sixtieth of the window.
        merchant(count(of=MERCHANT, window=hours(1)), "busy_merchant_1h", CLUSTER, "Payments at the merchant within an hour"),
        merchant(surge(of=MERCHANT, window=hours(1), against=days(7)), "merchant_surge_1h", CLUSTER,
                 "How many times its week's usual hour the merchant sells, 168 if it is new: a sudden crowd is seldom one of customers"),
        merchant(count(of=MERCHANT, window=hours(1), where=(SPENT, SMALL), called="small_count"), "many_small_merchant_payments_1h", TESTING,
                 "Payments of less than 500 minor units at the merchant within an hour: where testers try their numbers"),
        merchant(declines(of=MERCHANT, window=hours(1)), "many_merchant_declines_1h", TESTING, "Declines at the merchant within an hour"),
        merchant(decline_ratio(of=MERCHANT, window=hours(24)), "high_merchant_decline_ratio_24h", TESTING,
                 "Share of the merchant's attempts of a day that were declined"),
        merchant(distinct("card", of=MERCHANT, window=hours(1)), "many_merchant_cards_1h", CLUSTER,
                 "Different cards at the merchant within an hour, about"),
        merchant(ratio_to_mean(_A, of=MERCHANT, window=days(7)), "amount_above_merchant_usual", VELOCITY,
                 "The amount over the merchant's mean of a week, each in its account's currency"),
        merchant(fraud_share(of=MERCHANT, window=days(30), delay=MATURE), "risky_merchant_30d", COMPROMISE,
                 "Share of the merchant's payments of 7 to 37 days ago that turned out to be fraud"),
        merchant(count(of=TERMINAL, window=hours(1)), "busy_terminal_1h", COMPROMISE, "Payments at the terminal within an hour"),
        merchant(surge(of=TERMINAL, window=hours(24), against=days(30)), "terminal_surge_24h", COMPROMISE,
                 "How many times its month's usual day the terminal sells, 30 if it is new"),
        merchant(decline_ratio(of=TERMINAL, window=hours(24)), "high_terminal_decline_ratio_24h", COMPROMISE,
                 "Share of the terminal's attempts of a day that were declined"),
        merchant(distinct("card", of=TERMINAL, window=hours(24)), "many_terminal_cards_24h", COMPROMISE,
                 "Different cards at the terminal within a day, about"),
        merchant(fraud_share(of=TERMINAL, window=days(30), delay=MATURE), "risky_terminal_30d", COMPROMISE,
                 "Share of the terminal's payments of 7 to 37 days ago that turned out to be fraud: a skimmer shows late"),
        merchant(fraud_share(of=TERMINAL, window=days(7), delay=MATURE), "risky_terminal_7d", COMPROMISE,
                 "Share of the terminal's payments of 7 to 14 days ago that turned out to be fraud: whether it is over again"),
        merchant(fraud_share(of=TERMINAL, window=days(1), delay=MATURE), "risky_terminal_1d", COMPROMISE,
                 "Share of the terminal's payments of 7 to 8 days ago that turned out to be fraud"),
        merchant(decline_ratio(of=COUNTRIES, window=hours(24)), "high_country_decline_ratio_24h", COUNTRY,
                 "Share of all attempts in the merchant's country within a day that were declined"),
        velocity(count(of=IP, window=minutes(10)), "many_address_payments_10m", VELOCITY, "Payments from the IP address within ten minutes"),
        velocity(count(of=IP, window=hours(24)), "many_address_payments_24h", VELOCITY, "Payments from the IP address within a day"),
        velocity(declines(of=IP, window=hours(1)), "many_address_declines_1h", TESTING, "Declines from the IP address within an hour"),
        velocity(distinct("card", of=IP, window=hours(1)), "many_address_cards_1h", TESTING,
                 "Different cards from the IP address within an hour, about: one machine with many numbers"),
        velocity(distinct("account", of=IP, window=hours(24)), "many_address_accounts_24h", TAKEOVER,
                 "Different accounts from the IP address within a day, about"),
        velocity(count(of=BIN, window=minutes(10), where=(SPENT, SMALL), called="small_count"), "many_small_bin_payments_10m", TESTING,
                 "Payments of less than 500 minor units on cards of this BIN within ten minutes: numbers are tried in a row"),
        velocity(declines(of=BIN, window=minutes(10)), "many_bin_declines_10m", TESTING, "Declines of cards of this BIN within ten minutes"),
        velocity(decline_ratio(of=BIN, window=hours(1)), "high_bin_decline_ratio_1h", TESTING,
                 "Share of the BIN's attempts of an hour that were declined"),
        velocity(surge(of=BIN, window=minutes(10), against=hours(24)), "bin_surge_10m", TESTING,
                 "How many times their day's usual ten minutes the BIN's cards pay, at most 144"),
        velocity(distinct("card", of=BIN, window=minutes(10)), "many_bin_cards_10m", TESTING,
                 "Different cards of the BIN within ten minutes, about"),
        # Memory: what the vector could not see.
        memory(log_capped(of=CARD), "card_history_cut", DEGRADED, "The card had more payments in 90 days than its log keeps"),
        memory(log_capped(of=ACCOUNT), "account_history_cut", DEGRADED, "The account had more payments and events in 90 days than its log keeps"),
        memory(log_capped(of=DEVICE), "device_history_cut", DEGRADED, "The device had more payments in 90 days than its log keeps"),
        memory(log_capped(of=CUSTOMER), "customer_history_cut", DEGRADED, "The customer had more payments in 90 days than the log keeps"),
        memory(log_capped(of=EMAIL), "email_history_cut", DEGRADED, "The e-mail address had more payments in 90 days than its log keeps"),
        memory(log_capped(of=PHONE), "phone_history_cut", DEGRADED, "The phone number had more payments in 90 days than its log keeps"),
        memory(log_capped(of=ADDRESS), "address_history_cut", DEGRADED, "The address had more payments in 90 days than its log keeps"),
        memory(log_capped(of=COUNTERPARTY), "payee_history_cut", DEGRADED, "The beneficiary had more payments in 90 days than its log keeps"),
        memory(log_capped(of=PAYEE), "payee_account_history_cut", DEGRADED, "The beneficiary's own account had more payments than its log keeps"),
    )
)
# fmt: on
"""The features of this release, each one row."""
