import math
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from edgewise import telemetry
from edgewise.telemetry import LATENCY_BUCKETS_S, Metric, Metrics


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Samples as prometheus_client's own parser reads them; a sample that stands twice fails."""
    read: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in read
            read[key] = sample.value
    return read


def test_the_text_is_the_formats_own() -> None:
    metrics = Metrics()
    metrics.counter("edgewise_b_total", 'A "help" with \\ and\na line end.', ("why",)).inc('a"b\\c\nd', by=2)
    metrics.gauge("edgewise_a", "A gauge.").set(1.5)
    histogram = metrics.histogram("edgewise_c", "A histogram.", buckets=(0.1, 1.0))
    histogram.observe(0.1)
    histogram.observe(3)
    assert metrics.render().decode() == (
        "# HELP edgewise_a A gauge.\n"
        "# TYPE edgewise_a gauge\n"
        "edgewise_a 1.5\n"
        '# HELP edgewise_b_total A "help" with \\\\ and\\na line end.\n'
        "# TYPE edgewise_b_total counter\n"
        'edgewise_b_total{why="a\\"b\\\\c\\nd"} 2.0\n'
        "# HELP edgewise_c A histogram.\n"
        "# TYPE edgewise_c histogram\n"
        'edgewise_c_bucket{le="0.1"} 1\n'
        'edgewise_c_bucket{le="1.0"} 1\n'
        'edgewise_c_bucket{le="+Inf"} 2\n'
        "edgewise_c_sum 3.1\n"
        "edgewise_c_count 2\n"
    )


@given(st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"])))
def test_any_label_value_reads_back(first: str, second: str) -> None:
    metrics = Metrics()
    metrics.counter("c_total", "", ("first", "second")).inc(first, second)
    assert samples(metrics) == {("c_total", (("first", first), ("second", second))): 1.0}


@given(st.lists(st.floats(0, 20), max_size=40))
def test_buckets_count_what_is_at_most_their_bound(values: list[float]) -> None:
    metrics = Metrics()
    histogram = metrics.histogram(*telemetry.REQUEST_SECONDS)
    histogram.observe(0.0, "news", "edge")
    for value in values:
        histogram.observe(value, "news", "edge")
    read = samples(metrics)
    for bound in (*LATENCY_BUCKETS_S, math.inf):
        le = "+Inf" if bound == math.inf else repr(bound)
        key = ("edgewise_request_seconds_bucket", (("le", le), ("model", "news"), ("source", "edge")))
        assert read[key] == sum(value <= bound for value in [0.0, *values])
    assert read["edgewise_request_seconds_count", (("model", "news"), ("source", "edge"))] == len(values) + 1
    assert read["edgewise_request_seconds_sum", (("model", "news"), ("source", "edge"))] == pytest.approx(sum(values))


def test_a_metric_without_labels_is_there_before_its_first_value() -> None:
    metrics = Metrics()
    metrics.counter("c_total", "")
    metrics.histogram("h", "", buckets=(1.0,))
    read = samples(metrics)
    assert read["c_total", ()] == 0
    assert read["h_count", ()] == 0


def test_no_increment_is_lost_between_threads() -> None:
    metrics = Metrics()
    counter, histogram = metrics.counter("c_total", ""), metrics.histogram("h", "")
    quantiles = metrics.quantiles("q", "")

    def work() -> None:
        for _ in range(2000):
            counter.inc()
            histogram.observe(0.001)
            quantiles.observe(0.001)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    read = samples(metrics)
    assert read["c_total", ()] == 8000
    assert read["h_count", ()] == 8000
    assert quantiles._recent[()].counts.sum() == 8000


def test_asking_twice_gives_the_same_metric() -> None:
    metrics = Metrics()
    metrics.counter(*telemetry.CLOUD_CALLS).inc("ok")
    metrics.counter(*telemetry.CLOUD_CALLS).inc("ok")
    assert metrics.counter(*telemetry.CLOUD_CALLS).value("ok") == 2


def test_a_gauge_goes_up_and_down() -> None:
    gauge = Metrics().gauge(*telemetry.PROVISIONAL_OPEN)
    gauge.add(3)
    gauge.add(-1)
    assert gauge.value() == 2


class HandClock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def quantile_of(metrics: Metrics, quantile: str, source: str = "edge") -> float | None:
    key = ("edgewise_request_quantile_seconds", (("model", "news"), ("quantile", quantile), ("source", source)))
    return samples(metrics).get(key)


@given(st.lists(st.floats(1e-6, 1e4), min_size=1, max_size=300))
def test_quantiles_are_the_values_at_their_nearest_ranks_within_a_hundredth(values: list[float]) -> None:
    metrics = Metrics()
    quantiles = metrics.quantiles(*telemetry.REQUEST_QUANTILES)
    for value in values:
        quantiles.observe(value, "news", "edge")
    for quantile in telemetry.QUANTILES:
        exact = sorted(values)[math.ceil(quantile * len(values)) - 1]
        assert quantile_of(metrics, repr(quantile)) == pytest.approx(exact, rel=0.0101)


def test_quantiles_forget_what_is_older_than_their_window() -> None:
    clock = HandClock()
    metrics = Metrics(clock)
    quantiles = metrics.quantiles(*telemetry.REQUEST_QUANTILES)
    quantiles.observe(5.0, "news", "edge")
    clock.now += 40
    quantiles.observe(0.1, "news", "edge")
    assert quantile_of(metrics, "0.99") == pytest.approx(5.0, rel=0.01)
    clock.now += telemetry.WINDOW_S - 40
    assert quantile_of(metrics, "0.99") == pytest.approx(0.1, rel=0.01)
    clock.now += telemetry.WINDOW_S
    assert quantile_of(metrics, "0.99") is None


def test_a_pause_longer_than_the_window_empties_it() -> None:
    clock = HandClock()
    metrics = Metrics(clock)
    quantiles = metrics.quantiles(*telemetry.REQUEST_QUANTILES)
    quantiles.observe(5.0, "news", "edge")
    clock.now += 100 * telemetry.WINDOW_S
    quantiles.observe(0.1, "news", "edge")
    assert quantile_of(metrics, "0.99") == pytest.approx(0.1, rel=0.01)


@given(st.lists(st.tuples(st.floats(0, 25), st.floats(0.001, 10)), max_size=60))
def test_the_window_is_a_minute_to_a_slice(steps: list[tuple[float, float]]) -> None:
    clock = HandClock()
    metrics = Metrics(clock)
    quantiles = metrics.quantiles(*telemetry.REQUEST_QUANTILES)
    came = []
    for pause, value in steps:
        clock.now += pause
        quantiles.observe(value, "news", "edge")
        came.append((clock.now, value))
    oldest = (int(clock.now / 10) - 5) * 10
    inside = sorted(value for when, value in came if when >= oldest)
    if inside:
        exact = inside[math.ceil(0.95 * len(inside)) - 1]
        assert quantile_of(metrics, "0.95") == pytest.approx(exact, rel=0.0101)
    else:
        assert quantile_of(metrics, "0.95") is None


def test_quantiles_keep_no_more_than_so_many_values() -> None:
    quantiles = Metrics(HandClock()).quantiles(*telemetry.REQUEST_QUANTILES)
    sizes = set()
    for _ in range(5000):
        quantiles.observe(0.001, "news", "edge")
        sizes.add(len(quantiles._recent["news", "edge"].pending))
    assert max(sizes) == 1024


@pytest.mark.parametrize(("value", "shown"), [(0.0, 1e-6), (-1.0, 1e-6), (math.nan, 1e-6), (1e9, 1e4), (math.inf, 1e4)])
def test_a_value_beyond_the_buckets_counts_as_their_end(value: float, shown: float) -> None:
    metrics = Metrics()
    metrics.quantiles(*telemetry.REQUEST_QUANTILES).observe(value, "news", "edge")
    assert quantile_of(metrics, "0.5") == pytest.approx(shown, rel=0.0101)


@pytest.mark.parametrize(
    ("misuse", "problem"),
    [
        (lambda metrics: metrics.counter("1c", ""), "not a metric name"),
        (lambda metrics: metrics.counter("c", "", ("le",)), "not a label name"),
        (lambda metrics: metrics.counter("c", "", ("__reserved",)), "not a label name"),
        (lambda metrics: metrics.gauge("taken_total", ""), "registered already"),
        (lambda metrics: metrics.counter("taken_total", "", ("more",)), "registered already"),
        (lambda metrics: metrics.counter("taken_total", "").inc("value"), "not 1 values"),
        (lambda metrics: metrics.counter("taken_total", "").inc(by=-1), "only grow"),
        (lambda metrics: metrics.counter("taken_total", "").inc(by=math.nan), "only grow"),
        (lambda metrics: metrics.histogram("h", "", ("a",)).observe(1.0), "not 0 values"),
        (lambda metrics: metrics.quantiles("q", "", ("a",)).observe(1.0), "not 1 values"),
        (lambda metrics: metrics.quantiles("q", "", ("le",)), "not a label name"),
        (lambda metrics: metrics.histogram("h", "", buckets=(1.0, 1.0)), "strictly increasing"),
        (lambda metrics: metrics.histogram("h", "", buckets=()), "strictly increasing"),
        (lambda metrics: metrics.histogram("h", "", buckets=(1.0, math.inf)), "must be finite"),
    ],
)
def test_misuse_is_refused(misuse, problem) -> None:
    metrics = Metrics()
    metrics.counter("taken_total", "")
    with pytest.raises(ValueError, match=problem):
        misuse(metrics)


def test_the_catalogue_can_be_registered_whole() -> None:
    metrics = Metrics()
    catalogue = [value for value in vars(telemetry).values() if isinstance(value, Metric)]
    assert len(catalogue) >= 5
    for metric in catalogue:
        if metric.name.endswith("_total"):
            metrics.counter(*metric)
        elif "_quantile_" in metric.name:
            metrics.quantiles(*metric)
        elif metric.name.endswith("_seconds"):
            metrics.histogram(*metric)
        else:
            metrics.gauge(*metric)
    assert len({metric.name for metric in catalogue}) == len(catalogue)
