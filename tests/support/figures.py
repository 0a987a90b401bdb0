"""What /metrics says, as a test reads it."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

Samples = dict[str, float]
"""By name and labels, as `grokflask_requests_total{route=chat,status=200}`."""


def parse_figures(text: str) -> Samples:
    """All samples of the text, which Prometheus' own parser takes; none comes twice."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            name = f"{sample.name}{{{labels}}}" if labels else sample.name
            assert name not in found
            found[name] = sample.value
    return found
