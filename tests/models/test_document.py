"""Proves that the model document says everything, escapes what people wrote, and is one well-formed file."""

from __future__ import annotations

import json
from html.parser import HTMLParser

from features.catalogue import CATALOGUE
from models.artefact import CARD, packed
from models.document import document
from models.ensemble import Artefact
from models.governance import Inventory, after
from schemas.governance import Act
from tests.models.test_governance import a_move

OPEN_ENDED = {"meta", "line", "circle", "rect", "path", "polyline"}


class Nesting(HTMLParser):
    """Whether every element that is opened is closed in its place."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        """One more, unless it has no contents."""
        if tag not in OPEN_ENDED:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """The last that was opened."""
        if tag not in OPEN_ENDED:
            assert self.open.pop() == tag


def test_the_document_says_everything_in_one_file(artefact: Artefact) -> None:
    card = json.loads(packed(artefact)[CARD])
    inventory = Inventory()
    for act, by in ((Act.REGISTER, "ana"), (Act.VALIDATE, "ben"), (Act.APPROVE, "cleo <b>"), (Act.PROMOTE, "cleo")):
        inventory = after(inventory, a_move(inventory, act, by, why="5 < 6 & true"))
    text = document("m1", card, inventory.items["m1"], inventory.moves, ("score_psi",), CATALOGUE)
    nesting = Nesting()
    nesting.feed(text)
    assert nesting.open == []
    for said in (
        "Purpose",
        "Lineage",
        "Limits",
        "cleo &lt;b&gt;",
        "5 &lt; 6 &amp; true",
        artefact.data_sha256,
        artefact.recipe_id,
        "FAILED",
        "champion",
    ):
        assert said in text, said
    for gate, limit in (("parity_max", "at most 1e-12"), ("parity_rows", "at least 100,000"), ("top_reason_agrees", "at least 0.9")):
        assert f"<td>{limit}</td>" in text.partition(f"<tr><td>{gate}</td>")[2].partition("</tr>")[0]
    assert all(name in text for name in CATALOGUE.names)
    assert text.count("<svg") == 2
    assert "<script" not in text
    assert "http" not in text, "it needs nothing from elsewhere"


def test_the_document_says_which_payments_were_held_out(artefact: Artefact) -> None:
    """They are a fifth of the payments: where there are ever more of them that is less than a fifth of the time."""
    card = json.loads(packed(artefact)[CARD])
    text = document("m1", card, None, (), (), CATALOGUE)
    assert "The held-out rows are the last fifth of the payments" in text
    assert "<tr><td>grown from payments until</td><td>1970-01-01 00:53 UTC</td></tr>" in text
    del card["trained"]["learned_until_ms"]
    assert "grown from payments until</td><td>not recorded</td>" in document("m1", card, None, (), (), CATALOGUE)


def test_a_model_that_nobody_entered_and_measured_has_a_document_too(artefact: Artefact) -> None:
    card = json.loads(packed(artefact)[CARD]) | {"checks": {}, "plots": {}}
    text = document("m1", card, None, (), ("parity_max",), CATALOGUE)
    assert "not entered" in text
    assert "never measured" in text
