"""The sampling benchmark end to end on a tiny network, with a peer that this Python can run."""

import dataclasses
import json
import pathlib
import shlex
import shutil
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro

from experiments.benchmarks import envs, flops, problem, report, sampling
from experiments.benchmarks.jax_worker import JaxContender, on_device
from experiments.benchmarks.peers import ours
from experiments.benchmarks.problem import ROWS, SIZES, Row
from experiments.benchmarks.worker import Failed, Missing, Worker

ROOT = pathlib.Path(__file__).parents[2]
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_samples_that_differ_are_not_timed(run):
    _, results = run
    reason = results["rows"]["euler"]["fake"]["missing"]
    assert "samples differ" in reason


@pytest.mark.slow
def test_a_peer_that_cannot_be_installed_is_said_and_not_fatal(run):
    config, results = run
    assert results["absent"] == {"absent": "could not be installed: no matching distribution"}
    page = (config.docs / "benchmarks.md").read_text()
    assert "* absent: could not be installed: no matching distribution." in page


@pytest.mark.slow
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


in_git = pytest.mark.skipif(
    subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, cwd=ROOT).returncode != 0,
    reason="no git repository",
)


@in_git
@pytest.mark.slow
def test_against_itself(tmp_path):
    config = sampling.Config(
        size="tiny", rounds=1, firsts=1, rows=("cfg",), against="HEAD", publish=True,
        out=tmp_path / "run", docs=tmp_path / "docs",
    )  # fmt: skip
    sampling.main(config)
    results = json.loads((tmp_path / "docs" / "benchmarks" / "against.json").read_text())
    assert list(results["versions"]) == ["guidejax", results["against"]]
    row = results["rows"]["cfg"]
    assert row[results["against"]]["difference"] < 1e-3
    assert len(row["guidejax"]["again_s"]) == 1
    assert (tmp_path / "docs" / "against.md").read_text() == report.against(results)


@in_git
def test_the_earlier_guidejax_is_the_one_imported(tmp_path):
    entry = sampling.earlier("HEAD", tmp_path / "then")
    assert [path.name for path in (tmp_path / "then").iterdir()] == ["guidejax"]
    (tmp_path / "then" / "guidejax" / "__init__.py").write_text("raise RuntimeError('earlier')")
    worker = Worker(entry.environment.python, entry.module, tmp_path / "log.txt", entry.extra)
    with pytest.raises(Failed, match="ended"):
        worker.ask("first", 60)
    worker.close()
    assert "RuntimeError: earlier" in (tmp_path / "log.txt").read_text()


@in_git
def test_an_unknown_revision(tmp_path):
    with pytest.raises(SystemExit, match="no-such-revision"):
        envs.checkout("no-such-revision", tmp_path / "then")


def test_against_table():
    then = "guidejax 1234567"

    def found(run, again, flops=2.0):
        return {
            "run_s": run, "floor_s": [1.0, 1.0, 1.0], "again_s": again, "flops": flops,
            "instructions": 100,
        }  # fmt: skip

    results = {
        "against": then,
        "rows": {
            "same": {
                "guidejax": found([1.0, 2.0, 4.0], [3.0, 1.0]),
                then: found([1.0, 2.0, 2.0], [3.0, 2.0]),
            },
            "more": {"guidejax": found([2.0] * 3, [1.0], 3.0), then: found([1.0] * 3, [1.0])},
            "new": {"guidejax": found([1.0] * 3, [1.0]), then: {"missing": "no such solver"}},
        },
    }
    _, _, same, more, new = report.against_table(results).splitlines()
    assert same == (
        "| same | 1.000 (1.000–2.000) | 1.000 (1.000–1.000) | 1.000 | 0.750 (0.500–1.000) | 1.000 |"
    )
    assert "| 1.500 |" in more
    assert new.startswith("| new | guidejax 1234567: no such solver |")
    assert report.slower(results) == ["* *more*, time: 2.0000.", "* *more*, FLOPs: 1.5000."]


@pytest.mark.parametrize("knows_its_process", [True, False])
@pytest.mark.parametrize("in_families", [True, False])
def test_guidejax_of_any_revision_is_spoken_to(monkeypatch, knows_its_process, in_families):
    """`sample` takes the process, or the denoiser knows it; names stand on top, or in families."""
    if knows_its_process:

        def sample(key, denoise, noise, **named):
            return denoise, noise, named
    else:

        def sample(key, denoise, process, noise, **named):
            assert process == "flow"
            return denoise, noise, named

    families = {
        "processes": types.SimpleNamespace(rectified_flow=lambda: "flow"),
        "schedules": types.SimpleNamespace(interval=lambda omega, lo, hi: (omega, lo, hi)),
        "solvers": types.SimpleNamespace(heun=lambda: "heun"),
    }
    members = {} if in_families else {k: v for f in families.values() for k, v in vars(f).items()}
    fake = types.SimpleNamespace(
        sample=sample, cfg="cfg", guidance=lambda rule, omega: (rule, omega),
        denoiser=lambda network, process, prediction, params: (process, prediction),
        **(families if in_families else members),
    )  # fmt: skip
    monkeypatch.setattr(ours, "gj", fake)
    arrays = on_device(problem.make(SIZES["tiny"]))
    row = Row("part", "heun", lo=0.2, hi=0.8)
    denoise, noise, named = ours.build(row, arrays).call(3.0, 0, arrays.labels)
    assert denoise == ("flow", "velocity")
    assert noise is arrays.noise
    assert named["solver"] == "heun"
    assert named["guidance"] == ("cfg", (3.0, 0.2, 0.8))
    with pytest.raises(Missing, match="no such solver"):
        ours.build(Row("rk4", "rk4"), arrays)


@pytest.mark.slow
def test_this_guidejax_as_a_contender():
    made = problem.make(SIZES["tiny"])
    row = Row("part", "ddim", lo=0.39, hi=0.59)
    contender = JaxContender(ours.build, row, made)
    assert np.isfinite(contender.first()).all()
    cost = contender.cost()
    assert 1 <= cost["flops"] / cost["floor_flops"] < 1.02
    assert cost["instructions"] > cost["floor_instructions"] > 0


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
    assert passes["midpoint"] == [(50, 2, 2)]


def test_a_worker_that_fails_says_so(tmp_path):
    path = tmp_path / "problem.npz"
    problem.save(problem.make(SIZES["tiny"]), path)
    worker = Worker(sys.executable, "tests.experiments.fake_peer", tmp_path / "log.txt")
    with pytest.raises(Failed, match="AttributeError"):
        worker.ask("no_such_thing", 60)
    with pytest.raises(Missing, match="no such solver"):
        worker.make(Row("heun", "heun", stages=2), SIZES["tiny"], path, limit_s=60)
    worker.make(Row("cfg", "ddim"), SIZES["tiny"], path, limit_s=60)
    with pytest.raises(Failed, match="no answer in 0 s"):
        worker.first(tmp_path / "samples.npy", limit_s=0.01)
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


def test_rows_are_measured_in_the_order_given():
    rows = sampling.chosen_rows(sampling.Config(rows=("heun", "cfg")))
    assert [row.name for row in rows] == ["heun", "cfg"]
    assert sampling.chosen_rows(sampling.Config()) == list(ROWS)


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"rounds": 5, "batch": 32, "rows": ("cfg", "interval of 20%"), "torch_compile": False},
        {"size": "tiny", "dtype": "bfloat16", "peers": True},
    ],
)
def test_the_command_that_a_page_names_is_the_one_that_was_given(asked, tmp_path):
    rows = asked.get("rows") or [row.name for row in ROWS]
    typed = sampling.options(sampling.Config(**asked, out=tmp_path), rows)
    assert str(tmp_path) not in typed
    again = tyro.cli(sampling.Config, args=shlex.split(typed))
    assert again == sampling.Config(**asked, publish=True)


def test_unknown_row():
    with pytest.raises(SystemExit, match="no row nonsense"):
        sampling.chosen_rows(sampling.Config(rows=("nonsense",)))


@pytest.fixture
def docs(tmp_path):
    """The published results alone."""
    results = (ROOT / "docs" / "benchmarks").glob("*.json")
    known = {report.files(backend)[1] for backend in ("cpu", "gpu", "tpu")}
    (tmp_path / "benchmarks").mkdir()
    for path in results:
        if f"benchmarks/{path.name}" in known:
            shutil.copy(path, tmp_path / "benchmarks")
    return tmp_path


def test_the_published_pages_are_what_their_results_make(docs):
    report.publish(docs)
    pages = {path.name: path.read_text() for path in docs.glob("*.md")}
    assert "benchmarks.md" in pages
    for name, text in pages.items():
        assert (ROOT / "docs" / name).read_text() == text


def test_another_backend_has_a_page_of_its_own(docs):
    results = json.loads((docs / "benchmarks" / "results.json").read_text())
    rows = {name: results["rows"][name] for name in ("cfg", "omega = 0")}
    options = "--rounds 5 --batch 32 --rows cfg 'omega = 0' --publish"
    other = {"machine": "A GPU", "backend": "gpu", "cores": None, "options": options, "rows": rows}
    (docs / "benchmarks" / "gpu.json").write_text(json.dumps({**results, **other}))
    report.publish(docs)
    cpu, gpu = ((docs / name).read_text() for name in ("benchmarks.md", "benchmarks-gpu.md"))
    assert "[A GPU](benchmarks-gpu.md)" in cpu
    assert f"[{results['machine']}](benchmarks.md)" in gpu
    assert f"sampling {options}\n" in gpu
    assert f"sampling {results['options']}\n" in cpu
    assert "* **Machine**: A GPU;" in gpu
    for name in ("benchmarks/gpu.json", "benchmarks/gpu.png"):
        assert name in gpu
        assert (docs / name).stat().st_size > 0
    assert "*omega = 0* leaves 0.5 (0 of 50 steps are guided)." in gpu
    assert "*interval of 20%* leaves 0.6 (10 of 50 steps are guided)" in cpu
    assert "interval of 20%" not in gpu
    assert ("**Kernels**" in gpu, "**Kernels**" in cpu) == (True, False)
