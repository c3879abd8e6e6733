"""Imported by zygotes: a worker notes what it has finished after each step, so that small volumes have maps too."""

from jobvisor_workers import keeping

keeping.EVERY, keeping.COST = 0.0, 0
