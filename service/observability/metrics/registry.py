"""The sum over all processes of an instance: for scrapes, statistics and drills."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from service.observability.metrics import slots
from service.observability.metrics.slot_file import DamagedFile, read_file

Labels = tuple[tuple[str, str], ...]
# A sample is identified by its name (with _total, _bucket ..) and its sorted labels.
SampleKey = tuple[str, Labels]

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Family:
    """One metric: its samples added over the processes."""

    name: str
    kind: str
    tells: str
    samples: dict[SampleKey, float] = field(default_factory=dict)
    # When the number now in `samples` was set, for gauges that keep the newest.
    times: dict[SampleKey, float] = field(default_factory=dict)
    exemplars: dict[SampleKey, Exemplar] = field(default_factory=dict)


class SharedRegistry(CollectorRegistry):
    """Reads the files of all processes in a directory at each collection."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._collector = _SlotCollector(path)
        self.register(self._collector)

    def samples(self) -> dict[SampleKey, float]:
        """All samples as plain numbers: half the work of a scrape, which builds objects."""
        return self._collector.samples()


def shared_registry() -> CollectorRegistry:
    """The registry to show: of all processes, or of this one when it runs alone."""
    if slots.active():
        return SharedRegistry(slots.directory())
    return REGISTRY


def read_samples(registry: Collector) -> dict[SampleKey, float]:
    """Every current sample; buckets are cumulative, as in a scrape."""
    if isinstance(registry, SharedRegistry):
        return registry.samples()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for metric in registry.collect()
        for sample in metric.samples
    }


class _SlotCollector(Collector):
    def __init__(self, path: Path) -> None:
        self._path = path
        self._live: set[str] = set()

    def describe(self) -> list[Metric]:
        """Describes no metric in advance: the files name the metrics."""
        return []

    def collect(self) -> Iterator[Metric]:
        for family in self._families().values():
            yield _as_metric(family)

    def samples(self) -> dict[SampleKey, float]:
        samples: dict[SampleKey, float] = {}
        for family in self._families().values():
            samples.update(_cumulative(family) if family.kind == "histogram" else family.samples)
        return samples

    def _families(self) -> dict[str, _Family]:
        live = slots.live_slots(self._path)
        if live is not None:
            self._live = live
        families: dict[str, _Family] = {}
        # Exemplars after the metrics that they belong to.
        files = sorted(self._path.glob("*_*.db"), key=lambda path: path.name.startswith("exemplar"))
        for path in files:
            kind, _, slot = path.stem.rpartition("_")
            if kind.startswith("gauge_live") and slot not in self._live:
                continue
            try:
                entries = list(read_file(path))
            except FileNotFoundError:
                # Its owner died and the next one is recreating it.
                continue
            except (DamagedFile, OSError) as error:
                log.warning(
                    "metrics.file_unreadable", extra={"file": path.name, "reason": str(error)}
                )
                continue
            if kind == "exemplar":
                _add_exemplars(families, entries)
            else:
                _add_numbers(families, kind, slot, entries)
        return families


# Four times the series an instance may have; the keys of the processes are the same.
@lru_cache(maxsize=8192)
def _parse_key(key: str) -> tuple[str, SampleKey, str]:
    metric_name, name, labels, tells = json.loads(key)
    return metric_name, (name, tuple(sorted(labels.items()))), tells


def _add_numbers(
    families: dict[str, _Family], kind: str, slot: str, entries: list[tuple[str, float, float]]
) -> None:
    type_, _, mode = kind.partition("_")
    mode = mode.removeprefix("live")
    for key, number, time in entries:
        metric_name, sample, tells = _parse_key(key)
        family = families.get(metric_name)
        if family is None:
            family = families[metric_name] = _Family(metric_name, type_, tells)
        samples = family.samples
        if mode == "all":
            samples[sample[0], tuple(sorted((*sample[1], ("worker", slot))))] = number
        elif mode == "mostrecent":
            # Never set: unknown, which differs from 0.
            if time > family.times.get(sample, 0.0):
                samples[sample], family.times[sample] = number, time
        elif sample not in samples:
            samples[sample] = number
        elif mode == "max":
            samples[sample] = max(samples[sample], number)
        elif mode == "min":
            samples[sample] = min(samples[sample], number)
        else:
            samples[sample] += number


def _add_exemplars(families: dict[str, _Family], entries: list[tuple[str, float, float]]) -> None:
    """Join the parts that `SlotValue.set_exemplar` split; the newest of a sample wins."""
    parts: dict[str, dict[str, tuple[float, float]]] = {}
    for key, first, second in entries:
        parts.setdefault(key[1:], {})[key[0]] = (first, second)
    for key, part in parts.items():
        metric_name, sample, _ = _parse_key(key)
        family = families.get(metric_name)
        if family is None or len(part) != 3:
            continue
        (value, time), words = part["0"], (*part["1"], *part["2"])
        known = family.exemplars.get(sample)
        if known is None or time > float(known.timestamp or 0.0):
            trace_id = "".join(f"{int(word):08x}" for word in words)
            family.exemplars[sample] = Exemplar({"trace_id": trace_id}, value, time)


def _as_metric(family: _Family) -> Metric:
    metric = Metric(family.name, family.tells, family.kind)
    numbers = _cumulative(family) if family.kind == "histogram" else family.samples
    for sample, number in numbers.items():
        name, labels = sample
        metric.add_sample(name, dict(labels), number, exemplar=family.exemplars.get(sample))
    return metric


def _cumulative(family: _Family) -> dict[SampleKey, float]:
    """Cumulative buckets: the files count each bucket alone; a scrape includes all lower ones."""
    buckets: dict[Labels, list[tuple[float, SampleKey]]] = {}
    for sample in family.samples:
        edge, others = _bucket_of(sample[1])
        if edge is not None:
            buckets.setdefault(others, []).append((edge, sample))
    samples: dict[SampleKey, float] = {}
    for labels, edges in buckets.items():
        count = 0.0
        for _, sample in sorted(edges):
            count += family.samples[sample]
            samples[sample] = count
        samples[f"{family.name}_count", labels] = count
        sum_key = (f"{family.name}_sum", labels)
        samples[sum_key] = family.samples.get(sum_key, 0.0)
    return samples


@lru_cache(maxsize=8192)
def _bucket_of(labels: Labels) -> tuple[float | None, Labels]:
    """The bucket's edge and the other labels; None for a sample that is no bucket."""
    others = tuple(label for label in labels if label[0] != "le")
    return (float(dict(labels)["le"]) if len(others) < len(labels) else None), others
