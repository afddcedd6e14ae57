"""What ingestion exports: the figures of the audit and of a running `--follow`, for Prometheus.

Counts of the audit are gauges, since each is counted anew in the tables. It decides names only.
"""

from prometheus_client import CollectorRegistry, Gauge, start_http_server

from recsys.events.audit import Audit
from recsys.events.following import Status

PER_PARTITION = {
    "produced": "Events of the bus up to the last commit",
    "stored": "Rows of the table of events",
    "duplicate": "Rows of dropped duplicates",
    "rejected": "Rows of rejected events",
    "missing": "Offsets that stand in no table",
    "doubled": "Rows beyond the first of an offset",
    "lost": "Events that left the bus before they were ingested",
    "lag_messages": "Events on the bus that are not committed",
}


class IngestionMetrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.audit = {
            name: Gauge(f"recsys_ingestion_{name}", text, ["topic", "partition"], registry=self.registry)
            for name, text in PER_PARTITION.items()
        }
        self.oldest = Gauge(
            "recsys_ingestion_oldest_uncommitted_seconds",
            "Since the bus took the oldest event that is not committed",
            ["topic", "partition"],
            registry=self.registry,
        )
        self.events = Gauge(
            "recsys_ingestion_events",
            "Events since the start, by outcome",
            ["outcome"],
            registry=self.registry,
        )
        self.lag = Gauge(
            "recsys_ingestion_lag_seconds",
            "Longest time of the last commit from the bus taking an event",
            ["until"],
            registry=self.registry,
        )
        self.last_commit = Gauge(
            "recsys_ingestion_last_commit_timestamp_seconds", "When it committed last", registry=self.registry
        )
        self.waits = Gauge(
            "recsys_ingestion_waits", "1 while the bus or the store does not answer", registry=self.registry
        )

    def serve(self, port: int, *, host: str = "127.0.0.1") -> None:
        """Answers scrapes from a thread, until the process ends."""
        start_http_server(port, addr=host, registry=self.registry)

    def record_status(self, status: Status) -> None:
        self.waits.set(status.trouble is not None)
        self.events.labels("stored").set(status.counts.stored)
        self.events.labels("duplicate").set(status.counts.duplicate)
        for reason, count in status.counts.rejected.items():
            self.events.labels(reason).set(count)
        if status.last is not None:
            self.lag.labels("read").set(status.last.read_lag_ms / 1000)
            self.lag.labels("commit").set(status.last.commit_lag_ms / 1000)
            self.last_commit.set(status.last_at)

    def record_audit(self, audit: Audit) -> None:
        for line in audit.partitions:
            for name, gauge in self.audit.items():
                gauge.labels(audit.topic, str(line.partition)).set(getattr(line, name))
            self.oldest.labels(audit.topic, str(line.partition)).set(line.lag_s)
