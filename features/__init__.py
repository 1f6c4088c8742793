"""The second floor: what the past says. Feature rows, the logs of entities, the kernels; one door, `online.py`, to Redis."""
