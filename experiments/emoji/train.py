"""Train a text-to-image denoiser on the emoji.

    python -m experiments.emoji.train                # seed 0; goes on where it was stopped
    python -m experiments.emoji.train --seed 1
    python -m experiments.emoji.train --steps 20000 --out runs/emoji/long

Velocity prediction on rectified flow, with t from a logistic normal (Esser et al. 2403.03206), a
tenth of the captions left out, and a fifth replaced by Unicode's keywords. Writes the averaged
weights in bfloat16. `log.jsonl` has the loss, and that of pictures which nothing is learned from:
of 20,000 steps it is least at step 4,000, and rises from there on. `samples-*` are pictures of
captions that training never had.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import guidejax as gj
from experiments.emoji import captions, figures, storage, towers
from experiments.models import TextToImage

PROCESS = gj.processes.rectified_flow()
CHUNK = 20  # Steps of one program.


@dataclasses.dataclass(frozen=True)
class Config:
    """Train a text-to-image denoiser on the emoji."""

    seed: int = 0
    """Of the weights, the order, the times and the noise."""
    steps: int = 5_000
    """Steps in all; the learning rate falls to 0 along a cosine."""
    batch: int = 64
    """Pictures a step."""
    learning_rate: float = 1e-3
    """Of AdamW."""
    width: int = 144
    """Of the network."""
    depth: int = 8
    """Blocks of the network."""
    every: int = 500
    """Steps from one checkpoint, and one look at held-out pictures, to the next."""
    dropout: float = 0.1
    """Share of each block's outputs that training leaves out."""
    towers: pathlib.Path = storage.WEIGHTS
    """Where `experiments.emoji.towers` wrote the prompt tower, whose words condition it."""
    out: pathlib.Path = pathlib.Path("runs/emoji/train")
    """Where checkpoints, the log, samples and weights go, in a folder a seed."""


def network(width: int, depth: int, dropout: float = 0.0) -> TextToImage:
    """The denoiser's network."""
    return TextToImage(width, depth, heads=width // 24, dropout=dropout)


def loss(
    net: TextToImage,
    params: Any,
    key: jax.Array,
    x0: jax.Array,
    words: jax.Array,
    train: bool = False,
) -> jax.Array:
    """Mean squared error of the velocity, at one time and one noise a picture."""
    when, what, drop = jax.random.split(key, 3)
    t = jax.nn.sigmoid(0.3 + jax.random.normal(when, x0.shape[:1]))
    eps = jax.random.normal(what, x0.shape)
    x_t = gj.processes.noise_to(PROCESS, x0, t, eps)
    velocity = net.apply(params, x_t, t, words, train=train, rngs={"dropout": drop})
    return jnp.mean((velocity - (eps - x0)) ** 2)


def optimizer(config: Config) -> optax.GradientTransformation:
    """AdamW with a short warm-up."""
    rate = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, min(500, config.steps // 10), config.steps
    )
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.99, weight_decay=0.01)
    )


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def train(net, config, state, key, x0, words):
    """`CHUNK` steps; a state is (parameters, optimizer's, averaged parameters)."""
    said, keywords = words
    moves = optimizer(config)

    def step(state, key):
        params, moments, averaged = state
        which, how, form, drop = jax.random.split(key, 4)
        rows = jax.random.randint(which, (config.batch,), 0, x0.shape[0])
        column = (config.batch, 1, 1)
        given = jnp.where(jax.random.bernoulli(form, 0.2, column), keywords[rows], said[rows])
        given = jnp.where(jax.random.bernoulli(drop, 0.1, column), 0, given)
        value, gradient = jax.value_and_grad(functools.partial(loss, net, train=True))(
            params, how, x0[rows], given
        )
        updates, moments = moves.update(gradient, moments, params)
        params = optax.apply_updates(params, updates)
        averaged = optax.incremental_update(params, averaged, 0.002)
        return (params, moments, averaged), value

    state, values = jax.lax.scan(step, state, jax.random.split(key, CHUNK))
    return state, values.mean()


@functools.partial(jax.jit, static_argnums=0)
def held_out(net, params, x0, words):
    """The loss of pictures that nothing is learned from, with the same noise each time."""
    key = jax.random.key(0)
    parts = jax.tree.map(lambda a: a.reshape(-1, 25, *a.shape[1:]), (x0, words))
    return jnp.mean(jax.lax.map(lambda part: loss(net, params, key, *part), parts))


def identity(config: Config) -> dict[str, Any]:
    """What makes a run this one: its settings, but for where it writes and reads."""
    return {**dataclasses.asdict(config), "out": None, "towers": None}


def trained(seed: str) -> pathlib.Path:
    """Where the usual run of a seed left its denoiser.

    Raises:
        SystemExit: If it isn't there, or is of a run of other settings.
    """
    folder, command = Config.out / seed, f"python -m experiments.emoji.train --seed {seed}"
    path = folder / f"denoiser-{seed}.safetensors"
    if not path.exists():
        raise SystemExit(
            f"denoiser {seed} doesn't come with the repository, and isn't at {path}: {command}"
        )
    found, usual = json.loads((folder / "config.json").read_text()), identity(Config(int(seed)))
    if {**found, "every": None} != {**usual, "every": None}:
        raise SystemExit(f"{folder} holds a run of other settings; move it away, and {command}")
    return path


def load(path: pathlib.Path) -> gj.Denoiser:
    """The denoiser of weights that are written; its condition is that of `towers.prompts`."""
    params, about = storage.read(path)
    return ready(network(about["width"], about["depth"]), params)


def ready(net: TextToImage, params: Any) -> gj.Denoiser:
    """The denoiser of a network."""
    return gj.denoiser(_apply(net), PROCESS, prediction="velocity", params=params)


@functools.cache  # One function a network, so that all its weights share the compiled programs.
def _apply(net: TextToImage) -> Any:
    return lambda params, x, t, cond: net.apply(params, x, t, cond["words"])


def draw(path: pathlib.Path, denoise: gj.Denoiser, folder: pathlib.Path, count: int = 8) -> None:
    """Samples at four weights, beside real pictures with the same captions."""
    held = captions.pictures("select")
    rows = np.linspace(0, len(held.captions) - 1, count).astype(int)
    cond = towers.prompts([held.captions[row] for row in rows], folder)
    noise = jax.random.normal(jax.random.key(0), (count, *held.x0.shape[1:]))
    sample = jax.jit(
        lambda omega: gj.sample(
            jax.random.key(1), denoise, noise, cond=cond, uncond=towers.NULL,
            guidance=gj.guidance(gj.cfg, omega=omega), times=gj.uniform_times(24),
        )
    )  # fmt: skip
    columns = {f"ω = {omega:g}": sample(omega) for omega in (0.0, 1.0, 3.0, 7.0)}
    said = [held.captions[row] for row in rows]
    figures.grid({"real": held.x0[rows], **columns}, said, path)


def main(config: Config) -> None:
    """Train from the last checkpoint on, or from the beginning."""
    if config.steps % CHUNK or config.every % CHUNK:
        raise SystemExit(f"--steps and --every must be multiples of {CHUNK}.")
    out = (config.out / str(config.seed)).absolute()
    out.mkdir(parents=True, exist_ok=True)
    settings = out / "config.json"
    if settings.exists() and json.loads(settings.read_text()) != identity(config):
        raise SystemExit(f"{out} holds a run of other settings; give another --out.")
    settings.write_text(json.dumps(identity(config), indent=1))
    net = network(config.width, config.depth, config.dropout)
    about = {"width": config.width, "depth": config.depth, "seed": config.seed}

    def words(split: captions.Split) -> tuple[jax.Array, ...]:
        return tuple(towers.prompts(said, config.towers)["words"] for said in towers.texts(split))

    data = jnp.asarray(captions.pictures("train").x0), words("train")
    held = jnp.asarray(captions.pictures("select").x0), words("select")[0]
    begin, run = jax.random.split(jax.random.key(config.seed))
    params = jax.jit(net.init)(begin, data[0][:1], jnp.ones(1), data[1][0][:1])
    state = (params, optimizer(config).init(params), jax.tree.map(jnp.copy, params))
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    )  # fmt: skip
    with (
        ocp.CheckpointManager(
            out / "checkpoints", options=ocp.CheckpointManagerOptions(max_to_keep=2)
        ) as checkpoints,
        Progress(*columns) as progress,
    ):
        done = checkpoints.latest_step() or 0
        if done:
            state = checkpoints.restore(done, args=ocp.args.StandardRestore(state))
        task = progress.add_task("training", total=config.steps, completed=done)
        begun, values = time.monotonic(), []
        while done < config.steps:
            state, value = train(net, config, state, jax.random.fold_in(run, done), *data)
            done += CHUNK
            values.append(value)
            progress.update(task, completed=done)
            if done % config.every and done < config.steps:
                continue
            averaged = state[2]
            line = {
                "step": done,
                "loss": round(float(np.mean(values)), 5),
                "held_out": round(float(held_out(net, averaged, *held)), 5),
                "seconds": round(time.monotonic() - begun, 1),
            }
            if not np.isfinite(line["loss"]):
                raise SystemExit(f"the loss is {line['loss']} at step {done}; see {out}/log.jsonl.")
            with (out / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            progress.update(task, description=f"loss {line['loss']}, held out {line['held_out']}")
            values = []
            checkpoints.save(done, args=ocp.args.StandardSave(state))
            if done % (4 * config.every) == 0 or done == config.steps:
                draw(out / f"samples-{done:06}.png", ready(net, averaged), config.towers)
    storage.save(out / f"denoiser-{config.seed}.safetensors", state[2], about)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config, description=__doc__))
