"""A TPU's programs without a TPU: how they are read, what is published, and a few compiled."""

import importlib.metadata
import importlib.util
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

import guidejax as gj
from experiments.tpu import __main__ as tpu
from experiments.tpu import cells, programs, reading, report
from experiments.tpu.cells import EIGHT, MOST, ONE, Cell

DOCS = pathlib.Path(__file__).parents[2] / "docs"
PROGRAM = """\
HloModule a_step

%add (a: bf16[], b: bf16[]) -> bf16[] {
  %a = bf16[] parameter(0)
  %b = bf16[] parameter(1)
  ROOT %sum = bf16[] add(%a, %b)
}

%inside (p: f32[64,8]) -> bf16[8] {
  %p = f32[64,8]{1,0} parameter(0)
  %c = bf16[64,8]{1,0} convert(%p)
  ROOT %r = bf16[8]{0} reduce(%c, %zero), dimensions={0}, to_apply=%add, metadata={op_name="loss"}
}

ENTRY %main (p0: f32[64,8], p1: s32[]) -> f32[8] {
  %p0 = f32[64,8]{1,0:T(8,128)} parameter(0)
  %near = f32[64,8]{1,0:T(8,128)S(1)} copy-done(%copy-start)
  %f = bf16[8]{0:T(8,128)} fusion(%near), kind=kLoop, calls=%inside
  %wide = f32[8]{0:T(8,128)} convert(%f)
  %ar = (f32[8]{0}, f32[]) all-reduce-start(%wide, %one), to_apply=%add
  %sum = (f32[8]{0}, f32[]) all-reduce-done(%ar)
  %gathered = bf16[64,2]{1,0} all-gather(%f), dimensions={0}
  %out = token[] outfeed(%wide, %token)
  ROOT %done = f32[8]{0} get-tuple-element(%sum), index=0
}
"""


# How a program is read


def test_collectives_once_each_by_their_results():
    assert reading.collectives(PROGRAM) == {
        "all-reduce": {"count": 1, "bytes": 36},
        "all-gather": {"count": 1, "bytes": 256},
    }


def test_what_speaks_to_the_host():
    assert len(reading.to_host(PROGRAM)) == 1
    assert reading.to_host(PROGRAM.replace("outfeed", "negate")) == []


def test_a_sum_below_float32():
    assert len(reading.narrow_sums(PROGRAM)) == 1
    assert reading.narrow_sums(PROGRAM.replace("bf16[8]{0} reduce", "f32[8]{0} reduce")) == []
    assert reading.narrow_sums(PROGRAM.replace(" add(", " maximum(")) == []


def test_a_product_that_a_tpu_would_round():
    x = jnp.ones((4, 4))
    text = lambda f, x: jax.jit(f).lower(x).as_text()
    assert len(reading.narrow_products(text(lambda x: x @ x, x))) == 1
    assert reading.narrow_products(text(lambda x: jnp.matmul(x, x, precision="highest"), x)) == []
    assert reading.narrow_products(text(lambda x: x @ x, x.astype(jnp.bfloat16))) == []


def test_main_memory_is_counted_once_and_what_lies_on_the_chip_not_at_all():
    text = PROGRAM.replace("  %out = token[] outfeed(%wide, %token)\n", "")
    fetched = 4 * 64 * 8
    fused, widened, gathered = 2 * 8, 2 * 8 + 4 * 8, 2 * 8 + 2 * 64 * 2
    reduced = 4 * 8 + 4
    assert reading.memory_traffic(text) == fetched + fused + widened + gathered + reduced


# What the library promises


def test_omega_is_made_in_full_precision():
    """On a TPU, whose products of float32 are bfloat16's unless they are asked not to be."""
    net = gj.OmegaNet(num_classes=3)
    loss = lambda phi: net.weight(phi)(
        0.4, 0.5, jnp.arange(3), process=gj.processes.rectified_flow()
    ).sum()
    phi = jax.eval_shape(net.init, jax.random.key(0))
    text = jax.jit(jax.grad(loss)).lower(phi).as_text()
    assert "dot_general" in text
    assert reading.narrow_products(text) == []


# The run


def test_a_stopped_run_goes_on(tmp_path, monkeypatch):
    every = [Cell("small", f"rule:{name}", EIGHT) for name in ("cfg", "adg", "apg")]
    asked = []

    def compiled(todo):
        for cell in todo[:2]:
            asked.append(cell.name)
            yield cell, {"error": "out of memory"} if "adg" in cell.name else {"flops": 1.0}

    monkeypatch.setattr(tpu, "compiled", compiled)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.0")
    config = tpu.Config(out=tmp_path)
    tpu.run(config, every)
    results = tpu.run(config, every)
    # What failed is tried again, and what was there is kept.
    assert asked == [every[i].name for i in (0, 1, 1, 2)]
    assert set(results["cells"]) == {cell.name for cell in every}


def test_a_cell_that_ends_the_compiler(monkeypatch):
    """It is left out, and the others are compiled."""
    code = (
        "import json, sys; cells = json.load(sys.stdin); name = lambda c: 'small %(what)s' % c;"
        "from experiments.tpu.cells import Cell\n"
        "for c in cells:\n"
        "    if c['what'] == 'bad': sys.exit(3)\n"
        "    print(json.dumps([Cell(**c).name, {'flops': 1}]), flush=True)\n"
    )
    popen = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda args, **kw: popen([sys.executable, "-c", code], **kw)
    )
    todo = [Cell("small", what, EIGHT) for what in ("one", "bad", "two")]
    found = [(cell.what, "error" in result) for cell, result in tpu.compiled(todo)]
    assert found == [("one", False), ("bad", True), ("two", False)]


# What is published


@pytest.fixture(scope="module")
def results():
    return json.loads((DOCS / "scaling" / "results.json").read_text())


def test_the_published_page_is_what_its_results_make(results):
    assert (DOCS / "scaling.md").read_text() == report.page(results, report.read_billion(DOCS))


def test_everything_compiled_in_full_precision_without_the_host(results):
    for name, cell in results["cells"].items():
        assert "error" not in cell, name
        assert not cell["host"], name
        assert not cell.get("narrow"), name
    compiled = set(results["cells"])
    assert {cell.name for cell in cells.small((EIGHT,))} <= compiled


def test_flops_a_device_don_t_depend_on_the_number(results):
    for what in ("sampler", "step"):
        every = report.pick(results, group="billion", what=what, model=1, batch=8)
        flops = [cell["flops"] for cell in every if cell["topology"].startswith("v5e")]
        assert {cell["topology"] for cell in every} >= {"v5e:1x1", EIGHT, MOST}
        assert max(flops) <= 1.001 * min(flops)


def test_a_data_parallel_step_sends_omega_s_gradient_alone(results):
    for what in ("step", "rollout"):
        every = report.pick(results, group="billion", what=what, model=1)
        every = [cell for cell in every if cell["topology"] not in ONE]
        assert what == "rollout" or {cell["batch"] for cell in every} == {8, 16}
        assert all(tuple(cell["collectives"]) == ("all-reduce",) for cell in every)
        assert len({report.sent(cell) for cell in every}) <= 1
    for cell in report.pick(results, group="billion", what="sampler", model=1):
        assert not cell["collectives"]


def test_the_sampler_is_its_network_s_passes(results):
    flops = report.over(results, "sampler", "passes", "flops")
    moved = report.over(results, "sampler", "passes", "bytes")
    assert len(flops) >= 2
    assert max(flops.values()) <= 1.01
    assert max(moved.values()) <= 1.03


# A few, compiled here


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="libtpu: pip install '.[tpu]'")
def test_compiled_for_tpus():
    step = "objective:self_consistency"
    chosen = [
        Cell("small", "rule:adg", "v5e:1x1"),
        Cell("small", "rule:adg", EIGHT),
        Cell("small", "solver:heun", EIGHT),
        Cell("small", step, EIGHT, batch=8),
        Cell("small", step, EIGHT, batch=16),
    ]
    found = dict(tpu.compiled(chosen))
    for cell in chosen:
        assert "error" not in found[cell], found[cell]
        assert not found[cell]["host"]
        assert not found[cell]["narrow"]
    one, eight, heun, *steps = (found[cell] for cell in chosen)
    assert eight["flops"] == pytest.approx(one["flops"], rel=0.01)
    assert not eight["collectives"]
    assert not heun["collectives"]
    parameters = sum(leaf.size for leaf in jax.tree.leaves(programs.NET.init(jax.random.key(0))))
    # And the loss, for the metrics.
    assert [step["collectives"] for step in steps] == [
        {"all-reduce": {"count": 1, "bytes": 4 * (parameters + 1)}}
    ] * 2
