"""The change between two readings of the registry: deltas, rates, percentiles."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from service.observability.metrics.catalogue import NAMESPACE
from service.observability.metrics.registry import SampleKey


class Window:
    """Two readings and the time between them. Names are the catalogue's, without the prefix."""

    def __init__(
        self, before: Mapping[SampleKey, float], after: Mapping[SampleKey, float], seconds: float
    ) -> None:
        self.before = before
        self.after = after
        self.seconds = seconds
        self._keys: dict[str, list[SampleKey]] = defaultdict(list)
        for key in after:
            self._keys[key[0]].append(key)

    def delta(self, name: str, **labels: str) -> float:
        """The growth of the counter, summed over all labels that are not given."""
        return sum(self._deltas(name, labels).values())

    def rate(self, name: str, **labels: str) -> float:
        """Growth of a counter a second."""
        return self.delta(name, **labels) / self.seconds if self.seconds > 0 else 0.0

    def by(self, label: str, name: str, **labels: str) -> dict[str, float]:
        """Growth of a counter for each value of one label, without those that did not grow."""
        groups: dict[str, float] = defaultdict(float)
        for key, delta in self._deltas(name, labels).items():
            groups[dict(key[1])[label]] += delta
        return {value: groups[value] for value in sorted(groups) if groups[value]}

    def mean(self, name: str, **labels: str) -> float | None:
        """Mean of a histogram's observations, None without any."""
        count = self.delta(f"{name}_count", **labels)
        return self.delta(f"{name}_sum", **labels) / count if count else None

    def quantile(self, q: float, name: str, **labels: str) -> float | None:
        """Like Prometheus' histogram_quantile: linear within the bucket, at most the last edge."""
        edges: dict[float, float] = defaultdict(float)
        for key, delta in self._deltas(f"{name}_bucket", labels).items():
            edges[float(dict(key[1])["le"])] += delta
        ordered = sorted(edges.items())
        total = ordered[-1][1] if ordered else 0.0
        if not total:
            return None
        low, count_below = 0.0, 0.0
        for edge, count in ordered:
            if count >= q * total and count > count_below:
                if edge == float("inf"):
                    return low
                return low + (edge - low) * (q * total - count_below) / (count - count_below)
            low, count_below = edge, count
        return low

    def value(self, name: str, **labels: str) -> float | None:
        """A gauge's newest value, summed over the labels that are not given; None when unknown."""
        found = [self.after[key] for key in self._matching(name, labels)]
        return sum(found) if found else None

    def values_by(self, label: str, name: str, **labels: str) -> dict[str, float]:
        """A gauge's newest value for each value of one label."""
        groups: dict[str, float] = defaultdict(float)
        for key in self._matching(name, labels):
            groups[dict(key[1]).get(label, "")] += self.after[key]
        return dict(sorted(groups.items()))

    def _deltas(self, name: str, labels: Mapping[str, str]) -> dict[SampleKey, float]:
        deltas = {}
        for key in self._matching(name, labels):
            after, before = self.after[key], self.before.get(key, 0.0)
            # A counter that shrank was reset in between.
            deltas[key] = after - before if after >= before else after
        return deltas

    def _matching(self, name: str, labels: Mapping[str, str]) -> list[SampleKey]:
        keys, wanted = self._keys.get(f"{NAMESPACE}_{name}", []), set(labels.items())
        return [key for key in keys if wanted <= set(key[1])]
