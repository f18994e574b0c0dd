"""perf_analyzer, Triton's own load generator in C++: it reads metadata, configuration and statistics, sends over HTTP
and gRPC with and without shared memory, and fails when our counters do not grow."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["-i", "http"], id="http"),
        pytest.param(["-i", "http", "--async"], id="http async"),
        pytest.param(["-i", "grpc"], id="grpc"),
        pytest.param(["-i", "grpc", "--async", "--streaming"], id="grpc stream"),
        pytest.param(["-i", "http", "--shared-memory", "system"], id="http with shared memory"),
        pytest.param(["-i", "grpc", "--shared-memory", "system"], id="grpc with shared memory"),
    ],
)
def test_perf_analyzer_measures_and_finds_its_requests_in_our_statistics(
    shm_server, perf_analyzer: Path, run_foreign, tmp_path: Path, options: list[str]
):
    report = tmp_path / "report.csv"
    run_foreign(
        [
            perf_analyzer / "bin/perf_analyzer", "-m", "m", "-u", f"127.0.0.1:{shm_server.port}", "--shape", "x:1,4",
            "--concurrency-range", "2", "--measurement-interval", "200", "--stability-percentage", "999",
            "-f", report, *options,
        ],
        {"LD_LIBRARY_PATH": str(perf_analyzer / "lib/libraries")},
    )  # fmt: skip
    (row,) = csv.DictReader(report.read_text().splitlines())
    assert float(row["Inferences/Second"]) > 0
    assert shm_server.plane.find("m").counters.failed.count == 0
    assert shm_server.plane.find("m").counters.rejected == 0
    assert shm_server.plane.find("m").counters.successes > 0
