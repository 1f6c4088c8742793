"""A small run of `holdfast bench life`: any life of authorizations, against plain arithmetic."""

from __future__ import annotations

from hypothesis import settings

from tests.models.life import Life

Life.TestCase.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
test_available_is_balance_less_active_holds_and_no_hold_ends_twice = Life.TestCase
