"""The panels' PromQL: one short call for each shape of query."""

from __future__ import annotations

# The variables of every dashboard; Grafana fills them in.
INSTANCE = 'instance=~"$instance"'
PROVIDER = 'instance=~"$instance", provider=~"$provider"'
# The main call of the service; its latency is what a customer at a checkout feels.
PAY = 'instance=~"$instance", route="/v1/payments", method="POST"'


def per_second(counter: str, *, by: str = "", where: str = INSTANCE) -> str:
    """How fast a counter grows, added over the instances."""
    return f"sum{_by(by)}(rate(holdfast_{counter}{{{where}}}[$__rate_interval]))"


def counted(counter: str, *, by: str = "", where: str = INSTANCE, over: str = "$__range") -> str:
    """How much a counter grew over the dashboard's whole range, or over another window."""
    return f"sum{_by(by)}(increase(holdfast_{counter}{{{where}}}[{over}]))"


def added(gauge: str, *, by: str = "", where: str = INSTANCE) -> str:
    """A gauge that each instance has its own share of."""
    return f"sum{_by(by)}(holdfast_{gauge}{{{where}}})"


def largest(gauge: str, *, by: str = "", where: str = INSTANCE) -> str:
    """A gauge of which each instance knows the whole (the database's), or the worst of its workers."""
    return f"max{_by(by)}(holdfast_{gauge}{{{where}}})"


def smallest(gauge: str, *, by: str = "", where: str = INSTANCE) -> str:
    return f"min{_by(by)}(holdfast_{gauge}{{{where}}})"


def quantile(q: float, histogram: str, *, by: str = "", where: str = INSTANCE) -> str:
    """A percentile over all the instances: the buckets are added first."""
    labels = f"{by}, le" if by else "le"
    rate = f"rate(holdfast_{histogram}_bucket{{{where}}}[$__rate_interval])"
    return f"histogram_quantile({q}, sum by ({labels}) ({rate}))"


def percentiles(histogram: str, *, where: str = INSTANCE) -> list[tuple[str, str]]:
    """The middle, the slow and the slowest, with their legends."""
    return [(quantile(q, histogram, where=where), f"p{round(q * 100)}") for q in (0.5, 0.95, 0.99)]


def buckets(histogram: str, *, where: str = INSTANCE) -> str:
    """All the buckets of a histogram, for a heatmap."""
    return f"sum by (le) (increase(holdfast_{histogram}_bucket{{{where}}}[$__rate_interval]))"


def _by(labels: str) -> str:
    return f" by ({labels}) " if labels else ""
