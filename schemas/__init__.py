"""The ground floor: what things are. Frozen records, topics, wire formats, money; no behaviour that touches the world."""
