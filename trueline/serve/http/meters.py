"""What /metrics shows, in Prometheus' form. One registry per server; written by the event loop only.

histogram_quantile(0.99, rate(trueline_time_to_first_token_seconds_bucket[5m]))     the 99th percentile, in PromQL
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from trueline.serve.request import Statistics

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
PER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5)
BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Meters:
    """Counters, gauges and histograms."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.answers = Counter("trueline_http_requests", "Answers by route and status", ("route", "status"), registry=registry)
        self.prompt_tokens = Counter("trueline_prompt_tokens", "Tokens of accepted prompts", registry=registry)
        self.generated_tokens = Counter("trueline_generated_tokens", "Tokens drawn", registry=registry)
        self.cancelled = Counter("trueline_cancelled_requests", "Requests given up before their end", registry=registry)
        self.failures = Counter("trueline_engine_failures", "Steps of the engine that raised an error", registry=registry)
        self.first_token = Histogram(
            "trueline_time_to_first_token_seconds", "From a prompt's arrival to its first token", buckets=SECONDS, registry=registry
        )
        self.per_token = Histogram(
            "trueline_time_per_output_token_seconds", "Between two tokens of a response", buckets=PER_TOKEN, registry=registry
        )
        self.request = Histogram("trueline_request_seconds", "A request from arrival to end", buckets=SECONDS, registry=registry)
        self.batch = Histogram("trueline_batch_size", "Tokens drawn by one step", buckets=BATCH, registry=registry)
        self.open = Gauge("trueline_prompts_open", "Prompts that wait, run, or are being read", registry=registry)
        names = {
            "waiting": ("requests_waiting", "Requests that wait in the engine"),
            "running": ("responses_running", "Responses being drawn"),
            "blocks_used": ("cache_blocks_used", "Blocks of the key-value cache in use"),
            "blocks_total": ("cache_blocks", "Blocks of the key-value cache"),
            "hit_tokens": ("prefix_hit_tokens", "Prompt tokens that were found in the cache, so far"),
            "asked_tokens": ("prefix_asked_tokens", "Prompt tokens that were looked for in the cache, so far"),
            "preemptions": ("preemptions", "Responses that gave up their blocks, so far"),
        }
        self._engine = {field: Gauge(f"trueline_{name}", text, registry=registry) for field, (name, text) in names.items()}
        self._hit_rate = Gauge("trueline_prefix_hit_rate", "Share of prompt tokens found in the cache, so far", registry=registry)
        self._cache_use = Gauge("trueline_cache_use", "Share of the cache's blocks in use", registry=registry)

    def page(self, now: Statistics) -> bytes:
        """The text of /metrics."""
        for field, value in now._asdict().items():
            self._engine[field].set(value)
        self._hit_rate.set(now.hit_tokens / max(1, now.asked_tokens))
        self._cache_use.set(now.blocks_used / max(1, now.blocks_total))
        return generate_latest(self.registry)
