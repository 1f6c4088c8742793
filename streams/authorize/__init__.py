"""The authorization doors: bytes of a card authorization host become a Transaction, a decision becomes its answer."""
