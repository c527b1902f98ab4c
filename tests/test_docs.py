"""What a user copies from the README and the docs works, and what they say of the code is so."""

import ast
import doctest
import importlib
import json
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import guidejax as gj
from tests.learning.common import EXACT, MODEL, examples
from tests.rules import test_agreement
from tests.rules import test_common as every_rule
from tests.schedules import test_common as every_schedule
from tests.solvers.common import MEAN, PROCESSES, STD, flow

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "guidejax"
README = (ROOT / "README.md").read_text()
DESIGN = (ROOT / "docs" / "design.md").read_text()
# Written by hand or by an experiment; the site makes its API pages itself.
PAGES = sorted(
    page
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    if page.parent.name not in ("api", "notebooks", "project")
)
KEY = jax.random.key(0)


def snippets(page):
    """Every Python snippet of a page, on the lines that it has there."""
    text = page.read_text()
    for found in re.finditer(r"```python\n(.*?)```", text, re.DOTALL):
        yield "\n" * (text[: found.start()].count("\n") + 1) + found[1]


def is_file(snippet):
    """Whether it is a file of the library, as a recipe shows it."""
    return re.match(r"\s*# guidejax/\S+\.py\n", snippet) is not None


def run(page):
    """The page's snippets in order, as somebody would who tries them one after another."""
    names = {}
    for snippet in snippets(page):
        if not is_file(snippet):
            exec(compile(snippet, page.name, "exec"), names)
    return names


def test_there_are_snippets():
    assert {"README", "design", "rules"} <= {page.stem for page in PAGES if any(snippets(page))}


# The README


@pytest.mark.slow
def test_what_the_readme_runs_comes_out_as_it_says():
    found = run(ROOT / "README.md")
    # The loop with `combine` is `sample`.
    options = {**found["options"], "guidance": found["guide"], "solver": gj.euler()}
    ours = gj.sample(KEY, found["denoise"], found["noise"], **options)
    np.testing.assert_allclose(found["x"], ours, rtol=1e-4, atol=1e-4)
    # What was learned has moved.
    start = found["net"].init(jax.random.key(5))
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), found["phi"], start)
    assert any(jax.tree.leaves(moved))


@pytest.mark.slow
def test_loops_of_one_s_own_come_out_as_ours():
    found = run(ROOT / "docs" / "guide" / "your-loop.md")
    options = {"cond": found["labels"], "uncond": found["null"], "guidance": found["guide"]}
    sample = lambda times, solver: gj.sample(
        KEY, found["denoise"], found["noise"], times=times, solver=solver, **options
    )
    ours = sample(gj.uniform_times(10), gj.euler())
    np.testing.assert_allclose(found["x"], ours, rtol=1e-4, atol=1e-4)
    ours = sample(gj.uniform_times(99, 1.0, 0.01), gj.heun())
    np.testing.assert_allclose(found["solution"].ys[-1], ours, rtol=1e-3, atol=1e-3)


def test_the_costs_are_the_benchmarks():
    from experiments.benchmarks import report

    files = ROOT / "docs" / "benchmarks"
    cpu, gpu = (json.loads((files / f"{n}.json").read_text())["rows"] for n in ("results", "gpu"))
    section = " ".join(README.split("## What a sampler costs")[1].split("## ")[0].split())
    number = r"([\d.]+\d)"

    def said(pattern):
        found = re.search(pattern.replace("#", number), section)
        assert found, pattern
        return found.groups()

    def share(rows, row):
        return np.median(rows[row]["guidejax"]["run_s"]) / np.median(
            rows["cfg"]["guidejax"]["run_s"]
        )

    def beside(rows, peer):
        return report.over_ours(rows["interval of 20%"], peer)["median"]

    ours = [row["guidejax"] for row in cpu.values()]
    time = max(report.over_floor(found)["median"] for found in ours)
    flops = max(found["flops"] / found["floor_flops"] for found in ours)
    bare = said("takes at most # times the time, and # times the FLOPs, of a bare")
    assert bare == (f"{time:.2f}", f"{flops:.3f}")
    shares = said("20% of the steps are guided, a run takes # times.*where none is, #\\.")
    assert shares == tuple(f"{share(cpu, row):.2f}" for row in ("interval of 20%", "omega = 0"))
    peers = said(
        "hackable_diffusion takes # times.*DiffusionLab # times.*diffusers leaves.*takes #"
    )
    names = ("hackable_diffusion", "DiffusionLab", "diffusers")
    assert peers == tuple(f"{beside(cpu, name):.2f}" for name in names)
    on_gpu = said(
        "H200.*full guidance takes # times.*guiding 20% of the steps # times.*"
        "hackable_diffusion takes # times as long as guidejax, and diffusers #"
    )
    full = report.over_floor(gpu["cfg"]["guidejax"])["median"]
    assert on_gpu == (
        f"{full:.2f}", f"{share(gpu, 'interval of 20%'):.3f}",
        f"{beside(gpu, 'hackable_diffusion'):.2f}", f"{beside(gpu, 'diffusers'):.2f}",
    )  # fmt: skip


def test_the_counts_are_the_library_s():
    rules, schedules = re.search(r"(\d+) rules and (\d+) schedules", README).groups()
    assert int(rules) == len(gj.rules.RULES)
    assert int(schedules) == len(gj.schedules.SCHEDULES)


# Every page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_point_at_something(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text) + re.findall(r'src="([^"]+)"', text):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target
    for name in re.findall(r"\]\(#([^)]+)\)", text):
        heads = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        assert name in [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in heads], name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_name_of_guidejax_is_there(page):
    for path in set(re.findall(r"\bgj((?:\.\w+)+)", page.read_text())):
        found = gj
        for name in path.split(".")[1:]:
            found = getattr(found, name)


# Those of other tests, and those that learn, which takes seconds.
OWN_TEST = ("README", "design", "devices", "your-loop")
LEARN = ("index", "learned-weights", "resuming", "latents", "from-diffusers")


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.stem, marks=pytest.mark.slow if page.stem in LEARN else ())
        for page in PAGES
        if page.stem not in OWN_TEST and any(snippets(page))
    ],
)
def test_snippets_run(page):
    run(page)


@pytest.mark.slow
@pytest.mark.devices
def test_the_page_on_devices_runs():
    """And one device, a mesh and a model in pieces came to the same."""
    found = run(ROOT / "docs" / "devices.md")
    for one, other in zip(*(jax.tree.leaves(found[n]) for n in ("whole", "pieces")), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert found["loss"] > 0
    assert found["skipped"] == 0


# The design


@pytest.fixture
def add(tmp_path, monkeypatch):
    """Add a member as its recipe says, one file and one line; it is taken out again afterwards."""
    registries = [(each, dict(each)) for each in (gj.rules.RULES, gj.schedules.SCHEDULES)]
    undo = []

    def add(title):
        section = re.search(rf"^### {title}\n(.*?)(?=^##|\Z)", DESIGN, re.DOTALL | re.MULTILINE)[1]
        blocks = re.findall(r"```python\n# (\S+)\n(.*?)```", section, re.DOTALL)
        (path, code), (family_list, line) = blocks
        file = tmp_path / path
        assert not (ROOT / path).exists()
        assert file.parent / "__init__.py" == tmp_path / family_list
        assert len(line.splitlines()) == 1
        file.parent.mkdir(parents=True)
        file.write_text(code)
        family = importlib.import_module(".".join(pathlib.Path(family_list).parent.parts))
        monkeypatch.setattr(family, "__path__", [*family.__path__, str(file.parent)])
        importlib.invalidate_caches()
        undo.append((family, dict(vars(family)), set(sys.modules)))
        exec(line, vars(family))
        assert doctest.testmod(sys.modules[f"{family.__name__}.{file.stem}"]).failed == 0
        return family

    yield add
    for family, before, modules in undo:
        vars(family).clear()
        vars(family).update(before)
        for name in set(sys.modules) - modules:
            if name.startswith(f"{family.__name__}."):
                del sys.modules[name]
    for registry, before in registries:
        registry.clear()
        registry.update(before)


def test_the_page_on_the_design_runs():
    found = run(ROOT / "docs" / "design.md")
    sweep = found["sweep"]
    plain = gj.sample(
        KEY, found["denoise"], found["noise"], cond=found["cond"], times=gj.uniform_times(8)
    )
    np.testing.assert_allclose(sweep[0], plain, rtol=1e-6)
    for i, omega in ((2, 1.0), (8, 4.0)):
        np.testing.assert_allclose(sweep[i], found["end"](omega), rtol=1e-5, atol=1e-6)
    assert np.isfinite(found["slope"])


def test_a_room_imports_from_those_above_it_alone():
    table = DESIGN.split("## Rooms")[1].split("## ")[0]
    above = ["_arrays", "_random", "_geometry"]
    for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE):
        for room in re.findall(r"`(\w+)/?`", row):
            path = PACKAGE / room
            files = sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
            taken = {name for file in files for name in imported(file)} - {room}
            assert taken <= set(above), (room, taken - set(above))
            above.append(room)
    beside = {"__init__", "analytic", "data", "interop", "models", "particles", "rewards"}
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert rooms - {"__pycache__", "py"} == {*above, *beside}


def imported(file):
    """The rooms that a file imports from."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("guidejax."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.ImportFrom) and node.module == "guidejax":
            yield from (alias.name for alias in node.names)


@pytest.mark.slow
def test_recipe_of_a_rule(add):
    rule = add("A rule").capped
    assert gj.rules.RULES["capped"] is rule
    for dtype in (jnp.float32, jnp.bfloat16):
        every_rule.test_zero_omega_is_cond(rule, {}, dtype)
        every_rule.test_value_and_gradient_are_finite(rule, {}, dtype)
    every_rule.test_nan_in_nan_out(rule, {})
    every_rule.test_twice_the_predictions_guide_to_twice_as_much(rule, {})
    for check in (
        test_agreement.test_shapes_and_dtypes_are_kept,
        test_agreement.test_single_precision_is_double_and_the_gradient_the_slope,
        test_agreement.test_one_compilation_whatever_the_numbers,
        test_agreement.test_docstring,
    ):
        check(rule)
    cond, uncond = jax.random.normal(KEY, (2, 5, 8))
    moved = jnp.linalg.norm(rule(cond, uncond, 9.0, most=0.3) - cond, axis=1)
    np.testing.assert_allclose(moved, 0.3 * jnp.linalg.norm(cond, axis=1), rtol=1e-5)
    within = rule(cond, uncond, 0.1, most=9.0)
    np.testing.assert_allclose(within, gj.cfg(cond, uncond, 0.1), rtol=1e-5)


def test_recipe_of_a_schedule(add):
    family = add("A schedule")
    facts = gj.schedules.SCHEDULES["bump"]
    assert family.bump is facts.make
    for check in (
        every_schedule.test_finite_float32_one_compilation_and_gradients,
        every_schedule.test_numbers_of_each_sample,
        every_schedule.test_keeps_what_it_says,
        every_schedule.test_masks_are_true_and_calls_are_the_table,
    ):
        check(facts, {})
    every_schedule.test_wrong_numbers(facts)


@pytest.mark.slow
def test_recipe_of_a_process(add):
    process = add("A process").sub_vp(0.2, 12.0)
    gj.processes.check(process)
    t = np.array([0.1, 0.5, 1.0])
    integral = 0.2 * t + 11.8 * t**2 / 2
    np.testing.assert_allclose(process.alpha(t), np.exp(-integral / 2), rtol=1e-5)
    np.testing.assert_allclose(process.sigma(t), 1 - np.exp(-integral), rtol=1e-5)
    # Of another kind with the same leaves: another structure, and another program.
    other = gj.processes.linear_vp(0.2, 12.0)
    assert jax.tree.structure(process) != jax.tree.structure(other)
    sigma = jax.jit(lambda process: process.sigma(0.5))
    for each in (process, other) * 3:
        np.testing.assert_allclose(sigma(each), each.sigma(0.5), rtol=1e-6)
    x = process.sigma(0.95) * jnp.linspace(-2, 2, 5)[:, None]
    denoise = gj.analytic.denoiser(gj.analytic.gaussian(jnp.array([MEAN]), STD), process)
    times = gj.uniform_times(100, 0.95, 0.05)
    got = gj.sample(KEY, denoise, x, times=times, solver=gj.heun())
    np.testing.assert_allclose(got, flow(process, x, 0.95, 0.05), atol=2e-3)


@pytest.mark.slow
def test_recipe_of_a_solver(add, x64):
    ralston = add("A solver").ralston
    for process in (PROCESSES["rectified_flow"], PROCESSES["edm"]):
        denoise = gj.analytic.denoiser(gj.analytic.gaussian(jnp.array([MEAN]), STD), process)
        x = process.sigma(0.95) * jnp.linspace(-2, 2, 5)[:, None]
        exact = flow(process, x, 0.95, 0.05)
        coarse, fine = (
            jnp.abs(
                gj.sample(KEY, denoise, x, times=gj.uniform_times(n, 0.95, 0.05), solver=ralston())
                - exact
            ).max()
            for n in (100, 200)
        )
        np.testing.assert_allclose(np.log2(coarse / fine), 2, atol=0.12)
    # Exact on a straight path, with two evaluations a step and the network once in the program.
    asked = []

    def network(x, t, cond):
        jax.debug.callback(lambda t: asked.append(float(t[0])), t)
        return jnp.full_like(x, 0.7)

    straight = gj.denoiser(network, gj.processes.rectified_flow(), "velocity")
    x = jnp.array([[0.3, -2.0]])
    times = gj.uniform_times(3)
    run = lambda x: gj.sample(KEY, straight, x, times=times, solver=ralston())
    np.testing.assert_allclose(run(x), x - 0.7, rtol=1e-6)
    jax.effects_barrier()
    inner = times[:-1] - 2 / 9
    np.testing.assert_allclose(asked, np.stack([times[:-1], inner], axis=1).ravel(), atol=1e-6)
    assert str(jax.make_jaxpr(run)(x)).count("debug_callback[") == 1


@pytest.mark.slow
def test_recipe_of_an_objective(add):
    objective = add("An objective").denoising()
    n = 512
    keys, batch = jax.random.split(KEY, n), examples(n)

    def slopes(omega):
        """d loss/dω of each example."""
        loss = lambda omega: objective(keys, gj.guidance(gj.cfg, omega=omega), EXACT, batch)
        return np.asarray(jax.jvp(loss, (omega,), (1.0,))[1])

    # The exact conditional denoiser is the mean of x0 given x_t: nothing is nearer.
    still, guided = slopes(0.0), slopes(1.0)
    error = lambda each: each.std() / n**0.5
    assert abs(still.mean()) < 4 * error(still)
    assert guided.mean() > 4 * error(guided)
    phi = gj.fit(
        KEY, lambda phi: gj.guidance(gj.cfg, omega=phi), jnp.array(1.0), EXACT,
        [{"x0": batch.x0, "cond": batch.cond}] * 2, uncond=MODEL.null, objective=objective,
        optimizer=optax.sgd(1e-2), steps=2,
    )  # fmt: skip
    assert phi < 1


@pytest.mark.slow
def test_recipe_of_a_weight(add, tmp_path):
    net = add("A weight").PerClass(2)
    phi = jnp.log(jnp.array([0.5, 3.0]))
    omega = net.weights(phi)["omega"]
    np.testing.assert_allclose(omega(0.1, 0.2, jnp.array([1, 0, 1])), [3.0, 0.5, 3.0], rtol=1e-6)
    batch = examples(16)
    learned = gj.fit_omega(
        KEY, net, EXACT, [{"x0": batch.x0, "cond": batch.cond}] * 2, uncond=MODEL.null,
        objective=gj.self_consistency(), optimizer=optax.sgd(0.1), steps=2,
        checkpoint_dir=tmp_path / "run",
    )  # fmt: skip
    assert np.all(np.isfinite(learned))
    assert np.all(learned != 0)
    _, found = gj.load_omega(tmp_path / "run", net)
    np.testing.assert_array_equal(found, learned)
    with pytest.raises(ValueError, match="another network"):
        gj.load_omega(tmp_path / "run", type(net)(3))
