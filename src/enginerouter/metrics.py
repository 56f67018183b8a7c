"""Counters, gauges and histograms, and their Prometheus text form (0.0.4).

One `Registry` per router, passed in; nothing is global. Label values come from configured names only: the caller
gives "other" for anything a client made up.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence

PREFIX = "enginerouter_"
Labels = tuple[str, ...]


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


class Family:
    """One metric name with its help, its label names and its samples."""

    type_name = ""

    def __init__(self, name: str, help_text: str, label_names: Sequence[str] = ()) -> None:
        self.name = PREFIX + name
        self.help = help_text
        self.label_names = tuple(label_names)

    def _pairs(self, labels: Labels, extra: str = "") -> str:
        parts = [f'{n}="{_escape(v)}"' for n, v in zip(self.label_names, labels, strict=True)]
        if extra:
            parts.append(extra)
        return "{" + ",".join(parts) + "}" if parts else ""

    def samples(self) -> Iterable[str]:
        raise NotImplementedError

    def text(self) -> str:
        head = f"# HELP {self.name} {self.help}\n# TYPE {self.name} {self.type_name}\n"
        return head + "".join(f"{line}\n" for line in self.samples())


class Counter(Family):
    type_name = "counter"

    def __init__(self, name: str, help_text: str, label_names: Sequence[str] = ()) -> None:
        super().__init__(name, help_text, label_names)
        self._values: dict[Labels, float] = {} if label_names else {(): 0.0}

    def inc(self, labels: Labels = (), amount: float = 1.0) -> None:
        self._values[labels] = self._values.get(labels, 0.0) + amount

    def value(self, labels: Labels = ()) -> float:
        return self._values.get(labels, 0.0)

    def samples(self) -> Iterable[str]:
        return (f"{self.name}{self._pairs(k)} {_number(v)}" for k, v in self._values.items())


class Gauge(Family):
    """Read when scraped: `read` gives the value of every label set at that moment."""

    type_name = "gauge"

    def __init__(
        self,
        name: str,
        help_text: str,
        label_names: Sequence[str] = (),
        *,
        read: Callable[[], dict[Labels, float]],
    ) -> None:
        super().__init__(name, help_text, label_names)
        self._read = read

    def samples(self) -> Iterable[str]:
        return (f"{self.name}{self._pairs(k)} {_number(v)}" for k, v in self._read().items())


class _Series:
    """The counts of one label set of a histogram."""

    __slots__ = ("counts", "total")

    def __init__(self, buckets: int) -> None:
        self.counts = [0] * (buckets + 1)
        self.total = 0.0


class Histogram(Family):
    type_name = "histogram"

    def __init__(self, name: str, help_text: str, buckets: Sequence[float], label_names: Sequence[str] = ()) -> None:
        super().__init__(name, help_text, label_names)
        self.buckets = tuple(buckets)
        self._series: dict[Labels, _Series] = {}
        if not label_names:
            self._series[()] = _Series(len(self.buckets))

    def observe(self, value: float, labels: Labels = ()) -> None:
        series = self._series.get(labels)
        if series is None:
            series = self._series[labels] = _Series(len(self.buckets))
        series.counts[bisect_left(self.buckets, value)] += 1
        series.total += value

    def count(self, labels: Labels = ()) -> int:
        series = self._series.get(labels)
        return sum(series.counts) if series else 0

    def samples(self) -> Iterable[str]:
        for labels, series in self._series.items():
            running = 0
            for bound, count in zip((*self.buckets, float("inf")), series.counts, strict=True):
                running += count
                edge = "+Inf" if bound == float("inf") else _number(bound)
                pairs = self._pairs(labels, 'le="' + edge + '"')
                yield f"{self.name}_bucket{pairs} {running}"
            yield f"{self.name}_sum{self._pairs(labels)} {series.total!r}"
            yield f"{self.name}_count{self._pairs(labels)} {running}"


class Registry:
    """All metrics of one router, in the order they were made."""

    def __init__(self) -> None:
        self._families: list[Family] = []

    def counter(self, name: str, help_text: str, label_names: Sequence[str] = ()) -> Counter:
        metric = Counter(name, help_text, label_names)
        self._families.append(metric)
        return metric

    def gauge(
        self,
        name: str,
        help_text: str,
        label_names: Sequence[str] = (),
        *,
        read: Callable[[], dict[Labels, float]],
    ) -> Gauge:
        metric = Gauge(name, help_text, label_names, read=read)
        self._families.append(metric)
        return metric

    def histogram(
        self, name: str, help_text: str, buckets: Sequence[float], label_names: Sequence[str] = ()
    ) -> Histogram:
        metric = Histogram(name, help_text, buckets, label_names)
        self._families.append(metric)
        return metric

    def __iter__(self) -> Iterator[Family]:
        return iter(self._families)

    def text(self) -> str:
        return "".join(family.text() for family in self._families)
