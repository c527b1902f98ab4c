"""What shows a run as it goes."""

import io
import time

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import guidejax as gj
from guidejax.learning import monitors
from tests.learning.common import NET, PROCESS, batches, fit, flat


@pytest.fixture(scope="module")
def reports():
    """Those of a run whose data are slow."""
    found = []

    def slow():
        for batch in batches(12):
            time.sleep(0.02)
            yield batch

    phi = fit(slow(), monitors=[found.append])
    np.testing.assert_array_equal(flat(found[-1].phi), flat(phi))
    return found


def test_a_report_says_where_the_run_stands(reports):
    assert [report.step for report in reports] == [2, 3, 5, 6, 8, 9, 11, 12]
    assert {report.steps for report in reports} == {12}
    assert set(reports[0].metrics) == {"loss", "grad_norm", "skipped"}


def test_what_limits_the_speed(reports):
    """Of the last reports, compiled by then, the data take nearly all."""
    spent = {name: sum(r.seconds[name] for r in reports[3:6]) for name in reports[0].seconds}
    assert set(spent) == {"input", "device", "saving", "other"}
    assert spent["input"] > 0.02 * 3
    assert max(spent, key=spent.get) == "input"


def test_bar(reports):
    out = io.StringIO()
    show = monitors.bar(Console(file=out, width=120, force_terminal=True))
    for report in reports:
        show(report)
    assert "12/12" in out.getvalue()
    assert "updates/s" in out.getvalue()


def test_what_is_closed_early_is_closed_once(tmp_path, reports):
    out = io.StringIO()
    bar = monitors.bar(Console(file=out, width=120, force_terminal=True))
    for monitor in (bar, monitors.tensorboard(tmp_path)):
        monitor.close()  # Nothing is shown yet.
        monitor(reports[0])
        monitor.close()
        monitor.close()
    assert out.getvalue().count("\x1b[?25l") == out.getvalue().count("\x1b[?25h") == 1  # the cursor


def test_tensorboard(tmp_path, reports):
    from tensorboardX.proto.event_pb2 import Event

    write = monitors.tensorboard(tmp_path)
    for report in reports:
        write(report)
    (file,) = tmp_path.iterdir()
    raw, found, at = file.read_bytes(), {}, 0
    while at < len(raw):  # length, its checksum, the record, its checksum
        size = int.from_bytes(raw[at : at + 8], "little")
        event = Event.FromString(raw[at + 12 : at + 12 + size])
        found |= {(event.step, v.tag): v.simple_value for v in event.summary.value}
        at += 16 + size
    for report in reports:
        np.testing.assert_allclose(found[report.step, "loss"], report.metrics["loss"], rtol=1e-6)
    assert (12, "seconds/input") in found


@pytest.mark.slow
def test_curves(tmp_path, reports):
    path = tmp_path / "new" / "omega.png"
    draw = monitors.curves(path, NET, gj.uniform_times(8), PROCESS, jnp.arange(2), seconds=1e9)
    sizes = []
    for report in reports:
        draw(report)
        sizes.append(path.stat().st_mtime_ns)
    assert len(set(sizes)) == 2  # the first and the last
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert [p.name for p in path.parent.iterdir()] == ["omega.png"]
