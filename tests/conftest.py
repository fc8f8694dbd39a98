"""Shared fixtures, and the rule that what must run does run.

Marks ``root``, ``btrfs`` and ``engine("tool", ...)`` say what a test needs; one marked ``must_run`` looks
itself.  Where something is missing the test is skipped, but with ``CI=true`` it fails: a suite that skipped
its real engines proves nothing.  Any other skip of such a test, and a module that skips itself, counts
the same.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from rig import scratch
from rig.served import Served

MUST_RUN = ("root", "btrfs", "engine", "must_run")
# A machine that is busy with something else makes no example wrong.
settings.register_profile("mirrorkeep", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("mirrorkeep")
KILLS = int(os.environ.get("MIRRORKEEP_KILLS", "20"))
TOOL_FOLDERS = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"


def in_ci() -> bool:
    return os.environ.get("CI", "").lower() in ("1", "true", "yes")


def _missing(item: pytest.Item) -> str | None:
    """Say what ``item`` needs and this machine lacks, or None."""
    if item.get_closest_marker("root") and os.geteuid() != 0:
        return "root is needed"
    if item.get_closest_marker("btrfs") and (why := scratch.missing_for_mounts("btrfs")):
        return why
    for mark in item.iter_markers("engine"):
        for tool in mark.args:
            if shutil.which(tool, path=TOOL_FOLDERS) is None:
                return f"{tool} is not installed"
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    if why := _missing(item):
        pytest.skip(why)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):  # type: ignore[no-untyped-def]
    report = yield
    marked = any(item.get_closest_marker(name) for name in MUST_RUN)
    if report.skipped and marked and in_ci() and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} must run in continuous integration, but: {_reason(report)}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector):  # type: ignore[no-untyped-def]
    report = yield
    if report.skipped and in_ci():
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} skips itself as a whole: {_reason(report)}"
    return report


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    return str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)


@pytest.fixture(scope="session")
def kill_count() -> int:
    """Return how often a test that kills at random instants repeats itself."""
    return KILLS


@pytest.fixture
def scratch_mount(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Return ``make(name, kind="btrfs", size_bytes=...)``: fresh loop mounts, gone after the test (root)."""
    folder = tmp_path / "mounts"

    def make(name: str = "scratch", *, kind: str = "btrfs", size_bytes: int = 512 << 20) -> Path:
        if why := scratch.missing_for_mounts(kind):
            pytest.skip(why)
        return scratch.make(folder, name, kind=kind, size_bytes=size_bytes)

    yield make
    scratch.discard(folder)


@pytest.fixture
def btrfs_mount(scratch_mount: Callable[..., Path]) -> Path:
    """Return the mount point of a fresh btrfs of 512 MiB; mark the test ``btrfs``."""
    return scratch_mount("btrfs")


@pytest.fixture
def make_served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Served]]:
    """Return ``make(driver="dir", workers=2, ...)``: stores made and serving, ended after the test."""
    folder = tmp_path_factory.mktemp("served")
    stores: list[Served] = []

    def make(*, driver: str = "dir", start: bool = True, **options: object) -> Served:
        if driver == "btrfs":
            options.setdefault("size", "1G")
        served = Served(folder / f"data{len(stores)}", driver=driver, **options)  # type: ignore[arg-type]
        stores.append(served)
        served.create()
        if start:
            served.start()
        return served

    yield make
    for served in stores:
        served.stop()
    scratch.discard(folder)


@pytest.fixture(scope="module")
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Return a ``dir`` store for all tests of a module, which may choose more: ``STORE = {"workers": 1}``."""
    name = request.module.__name__.rpartition("_")[2]
    options = {
        "driver": "dir",
        "limit_s": 1200 + 5 * KILLS,
        **getattr(request.module, "STORE", {}),
    }
    served = Served(tmp_path_factory.mktemp(name) / "data", **options)
    try:
        served.create()
        served.start()
        yield served
    finally:
        served.stop()


@pytest.fixture
def served_store(make_served: Callable[..., Served]) -> Served:
    """Return a ``dir`` store that serves with two workers on a free port of loopback."""
    return make_served()
