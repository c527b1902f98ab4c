"""The sampling benchmark end to end on a tiny network, with a peer that this Python can run."""

import dataclasses
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import envs, flops, problem, report, sampling
from experiments.benchmarks.problem import ROWS, SIZES, Row
from experiments.benchmarks.worker import Failed, Missing, Worker

FAKE = envs.Peer("fake", "tests.experiments.fake_peer", ("fake",), 11)
ABSENT = envs.Peer("absent", "nowhere", ("no-such-package",), 11)


def _environment(peer, folder):
    if peer is ABSENT:
        return "could not be installed: no matching distribution"
    return envs.Environment(sys.executable, {"fake": "1.0"})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Of two rows: one that the peer can do, and one that it does otherwise."""
    out = tmp_path_factory.mktemp("benchmarks")
    config = sampling.Config(
        size="tiny", rounds=2, rows=("cfg", "euler"), out=out / "run", publish=True,
        docs=out / "docs",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(envs, "environment", _environment)
        sampling.main(config, peers=(FAKE, ABSENT))
    return config, json.loads((config.out / "results.json").read_text())


def test_what_is_measured(run):
    _, results = run
    assert set(results["rows"]) == {"cfg", "euler"}
    for row in results["rows"].values():
        ours = row["guidejax"]
        assert len(ours["run_s"]) == len(ours["floor_s"]) == 2
        assert ours["compilations"] == 1
        assert 1 <= ours["flops"] / ours["floor_flops"] < 1.02
        assert ours["difference"] == 0
    cfg = results["rows"]["cfg"]["fake"]
    assert cfg["difference"] < 1e-5
    assert cfg["flops"] == pytest.approx(cfg["floor_flops"], rel=1e-2)


def test_samples_that_differ_are_not_timed(run):
    _, results = run
    reason = results["rows"]["euler"]["fake"]["missing"]
    assert "samples differ" in reason


def test_a_peer_that_cannot_be_installed_is_said_and_not_fatal(run):
    config, results = run
    assert results["absent"] == {"absent": "could not be installed: no matching distribution"}
    page = (config.docs / "benchmarks.md").read_text()
    assert "* absent: could not be installed: no matching distribution." in page


def test_the_page_holds_the_results(run):
    config, results = run
    page = (config.docs / "benchmarks.md").read_text()
    assert page == report.page(results)
    assert results["machine"] in page
    ratio = report.over_ours(results["rows"]["cfg"], "fake")["median"]
    assert f"{ratio:.2f} (" in page
    assert (config.out / "table.md").read_text() == report.tables(results)
    files = {p.name for p in (config.docs / "benchmarks").iterdir()}
    assert files == {"results.json", "figure.png"}
    assert all(line in page for line in report.claims(results))


def test_losses_and_claims():
    def timed(run, floor=1.0):
        costs = {"flops": 1.0, "floor_flops": 1.0, "compilations": 1}
        return {"run_s": [run] * 3, "floor_s": [floor] * 3, **costs}

    results = {
        "rows": {
            "cfg": {"guidejax": timed(1.0), "fake": timed(0.5), "other": {"missing": "no"}},
            "interval of 20%": {"guidejax": timed(0.6, 0.6), "hackable_diffusion": timed(1.2)},
        }
    }
    assert [(row, other) for row, other, _ in report.losses(results)] == [("cfg", "fake")]
    text = "\n".join(report.claims(results))
    assert "interval of 20%, time over that of full guidance, at most 0.62: 0.6, reached" in text
    assert "hackable_diffusion's time over guidejax's, at least 1.6: 2, reached" in text
    assert "worst row: 0.5, NOT reached" in text


def test_flops_of_nested_scans_and_a_conditional():
    w = jnp.ones((8, 8))

    def product(x):
        return x @ w

    def inner(x, on):
        return jax.lax.cond(on, lambda x: product(product(x)), product, x), None

    def outer(x, _):
        return jax.lax.scan(inner, product(x), jnp.arange(5) % 2 == 0)[0], None

    run = jax.jit(lambda x: jax.lax.scan(outer, x, None, length=7)[0])
    found = flops.count(run.lower(jnp.ones((4, 8))).compile().as_text())
    dots = 7 * (1 + 5 * 2) * 2 * 4 * 8 * 8
    assert dots <= found < 1.05 * dots


def test_flops_of_a_library_call():
    text = """ENTRY %main (a: bf16[4,8], b: bf16[8,16]) -> bf16[4,16] {
  %a = bf16[4,8]{1,0} parameter(0)
  %b = bf16[8,16]{1,0} parameter(1)
  %gemm = (bf16[4,16]{1,0}, s8[64]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}, metadata={op_name="x"}
}"""  # noqa: E501
    assert flops.count(text) == 2 * 4 * 16 * 8


def test_flops_say_when_they_cannot_be_known():
    run = jax.jit(lambda n: jax.lax.while_loop(lambda i: i < n, lambda i: 2 * i, 1))
    with pytest.raises(ValueError, match="how often"):
        flops.count(run.lower(9).compile().as_text())
    with pytest.raises(ValueError, match="no text"):
        flops.count("")


def test_passes_of_rows():
    passes = {row.name: row.passes(50) for row in ROWS}
    assert passes["cfg"] == [(50, 1, 2)]
    assert passes["interval of 20%"] == [(21, 1, 1), (10, 1, 2), (19, 1, 1)]
    assert passes["omega = 0"] == [(50, 1, 1)]
    assert passes["heun"] == [(49, 2, 2), (1, 1, 2)]


def test_a_worker_that_fails_says_so(tmp_path):
    path = tmp_path / "problem.npz"
    problem.save(problem.make(SIZES["tiny"]), path)
    worker = Worker(sys.executable, "tests.experiments.fake_peer", tmp_path / "log.txt")
    with pytest.raises(Failed, match="AttributeError"):
        worker.ask("no_such_thing", 60)
    files = (path, tmp_path / "samples.npy")
    with pytest.raises(Missing, match="no such solver"):
        worker.first(Row("heun", "heun", stages=2), SIZES["tiny"], *files, limit_s=60)
    with pytest.raises(Failed, match="no answer in 0 s"):
        worker.first(Row("cfg", "ddim"), SIZES["tiny"], *files, limit_s=0.01)
    worker.close()
    assert "Traceback" in (tmp_path / "log.txt").read_text()


def test_a_problem_is_read_as_it_was_written(tmp_path):
    made = problem.make(dataclasses.replace(SIZES["tiny"], batch=3))
    problem.save(made, tmp_path / "problem.npz")
    read = problem.load(made.size, tmp_path / "problem.npz")
    jax.tree.map(np.testing.assert_array_equal, made.params, read.params)
    np.testing.assert_array_equal(made.noise, read.noise)
    np.testing.assert_array_equal(made.labels, read.labels)


def test_no_python_and_no_package(tmp_path, monkeypatch):
    monkeypatch.setattr(envs, "find_python", lambda minor: None)
    reason = envs.environment(ABSENT, tmp_path)
    assert reason == "needs Python 3.11 or newer, and none was found"
    monkeypatch.setattr(envs, "find_python", lambda minor: sys.executable)
    monkeypatch.setattr(envs, "_run", lambda command: "could not be installed: offline")
    assert envs.environment(ABSENT, tmp_path) == "could not be installed: offline"


def test_the_running_python_is_found():
    assert envs.find_python(sys.version_info.minor) == sys.executable
    assert envs.find_python(99) is None


def test_unknown_row():
    with pytest.raises(SystemExit, match="no row nonsense"):
        sampling.chosen_rows(sampling.Config(rows=("nonsense",)))


def test_the_published_page_is_what_its_results_make():
    docs = pathlib.Path(__file__).parents[2] / "docs"
    results = json.loads((docs / "benchmarks" / "results.json").read_text())
    assert (docs / "benchmarks.md").read_text() == report.page(results)
