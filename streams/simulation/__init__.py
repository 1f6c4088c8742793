"""The simulated bank: its world, its honest customers, its fraudsters, and the file it would export."""
