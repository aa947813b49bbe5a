"""The seven dashboards, in the order in which the person on call opens them."""

from __future__ import annotations

from grafana.boards import drills, incident, overview, pool, provider, settling, workers
from grafana.frame import Board

ALL: tuple[Board, ...] = (
    overview.BOARD,
    incident.BOARD,
    provider.BOARD,
    pool.BOARD,
    settling.BOARD,
    workers.BOARD,
    drills.BOARD,
)
