"""Proofs of the third floor."""
