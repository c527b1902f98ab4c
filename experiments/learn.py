r"""A guidance weight learned for any supported checkpoint, on your pictures.

    python -m experiments.learn --model.checkpoint stable-diffusion-v1-5/stable-diffusion-v1-5 \
        --data pictures/ --preset sd15-clip --reward openai/clip-vit-base-patch32 --out runs/omega
    python -m experiments.generate ... --guide.weight runs/omega

`--data` is a folder of pictures (with `metadata.jsonl`, .txt files beside them, or a subfolder a
class), a dataset of TFDS, or a folder of latents that an earlier run prepared. `--half-of 1000`
leaves the other half to `experiments.evaluate`, which doesn't report on what was learned on. The
same command goes on with a run that was stopped. Writes the weight, `omega.png`, `omega.json`.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import pathlib
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import guidejax as gj
from experiments import checkpoints, logs, pictures

LOG = logging.getLogger("experiments.learn")


@dataclasses.dataclass(frozen=True)
class Preset:
    """The settings of an experiment of Galashov et al. 2510.00815.

    Attributes:
        objective: "self-consistency", or "rollout" of whole samples.
        beta: β of the energy distance.
        lam: λ of it.
        particles: m.
        batch: Examples of an update.
        updates: How many.
        churn: e of the bridge in training.
        min_gap: δ, the least t − s.
        s_min: S_min, the least s.
        t_max: 1 − ζ, the greatest t.
        reward_weight: γ_R of the reward, where one is given.
        learning_rate: Of Adam.
        ours: Which of these the paper doesn't say, and are our choice.
    """

    objective: Literal["self-consistency", "rollout"] = "self-consistency"
    beta: float = 1.75
    lam: float = 1.0
    particles: int = 4
    batch: int = 256
    updates: int = 100_000
    churn: float = 1.0
    min_gap: float = 0.1
    s_min: float = 0.0
    t_max: float = 0.99
    reward_weight: float = 0.0
    learning_rate: float = 1e-3
    ours: tuple[str, ...] = ()


# The paper swept S_min and δ, and says of δ alone that about 0.1 was best on ImageNet.
_UNTOLD = ("learning_rate", "s_min", "t_max")
PRESETS = {
    "imagenet64": Preset(ours=_UNTOLD),
    "celeba": Preset(ours=("min_gap", *_UNTOLD)),
    "coco": Preset(
        updates=50_000, reward_weight=1.0, ours=("churn", "min_gap", "reward_weight", *_UNTOLD)
    ),
    "sd15-clip": Preset(
        updates=50_000, reward_weight=1.0,
        ours=("batch", "beta", "churn", "lam", "min_gap", "particles", "reward_weight", "updates",
              *_UNTOLD),
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config:
    """Learn a guidance weight."""

    model: checkpoints.Model
    data: str = ""
    """A folder of pictures, a dataset of TFDS, or a folder of prepared latents."""
    half_of: int | None = None
    """Learn on half of this many pictures, that which experiments.evaluate tunes on and doesn't
    report on; its own --pictures is 1000. All pictures by default."""
    preset: Literal["imagenet64", "celeba", "coco", "sd15-clip"] = "imagenet64"
    """Settings of an experiment of the paper; the flags below change some of them."""
    objective: Literal["self-consistency", "rollout"] | None = None
    """By one step of the sampler, as the paper does, or by whole samples."""
    updates: int | None = None
    """How many."""
    batch: int | None = None
    """Examples of an update, over all devices."""
    particles: int | None = None
    """Samples that each example is compared by."""
    learning_rate: float | None = None
    """Of Adam, which falls to 0 along a cosine."""
    reward: str = ""
    """A CLIP or SigLIP checkpoint whose score is rewarded; none by default."""
    reward_weight: float | None = None
    """How much the score counts."""
    rule: Literal["cfg", "adg", "apg"] = "cfg"
    """What the weight steers: omega, with ADG the cap too, with APG eta."""
    see_state: bool = False
    """Whether the weight sees the sample too, and not only condition and times."""
    steps: int = 16
    """Of the sampler, in a rollout and in the picture of the weight."""
    save_every: int = 500
    """Updates between checkpoints."""
    seed: int = 0
    """Of the run."""
    out: pathlib.Path = pathlib.Path("runs/omega")
    """Where the weight goes."""


_RULES = {
    "cfg": (gj.cfg, ("omega",)),
    "adg": (gj.adg, ("omega", "max_angle")),
    "apg": (gj.apg, ("omega", "eta")),
}


def settings(config: Config) -> Preset:
    """The preset with what the flags change."""
    names = ("objective", "updates", "batch", "particles", "learning_rate", "reward_weight")
    given = {n: v for n in names if (v := getattr(config, n)) is not None}
    preset = dataclasses.replace(PRESETS[config.preset], **given)
    return preset if config.reward else dataclasses.replace(preset, reward_weight=0.0)


def _net(about: dict[str, Any]) -> gj.OmegaNet:
    sizes: dict[str, Any] = {"num_classes": about["classes"]}
    if about["text_dim"] is not None:
        sizes = {"cond_dim": about["text_dim"], "cond": checkpoints.mean_of_text}
    sees = ("state", "delta") if about["see_state"] else ()
    return gj.OmegaNet(outputs=_RULES[about["rule"]][1], sees=sees, **sizes)


def load(folder: pathlib.Path) -> tuple[gj.OmegaNet, Any, Any]:
    """(network, φ, rule) of a weight that was learned into a folder."""
    about = folder / "weight.json"
    if not about.is_file():
        raise SystemExit(f"{folder} holds no weight that experiments.learn has learned.")
    told = json.loads(about.read_text())
    net, phi = gj.load_omega(folder / "run", _net(told))
    return net, phi, _RULES[told["rule"]][0]


def judge(path: str, dtype: Any, download: bool) -> Any:
    """CLIP or SigLIP by its files, with both towers; or the Inception of FIDs.

    A .safetensors file, or a folder of one, is Inception's by its keys. It computes in float32
    whatever `dtype` is, as published FIDs do.
    """
    from guidejax.models import _files, _towers, clip, inception, siglip

    where = _files.find(path, download=download)
    config = _files.json_of(_towers.folder_of(where), "config.json")
    # What lies in one folder may be of several models; a file is what its keys say.
    if where.is_file() or not config:
        if inception.is_inception(keys := _files.Tensors(where).shapes):
            return inception.load(where)
        if not config:
            raise SystemExit(
                f"{where} has no config.json that says which CLIP or SigLIP it is, and isn't the "
                f"Inception of FIDs: {_files.looks_like(keys)}."
            )
    kind = config.get("model_type", "")
    return (siglip if "siglip" in kind else clip).load(where, dtype=dtype)


def objective(chosen: Preset, config: Config, found: checkpoints.Checkpoint, model: Any) -> Any:
    """What is minimised."""
    reward: dict[str, Any] = {}
    if model is not None:
        reward = {
            "reward": gj.rewards.clip_score(model, key="tokens", decode=found.decode),
            "reward_weight": chosen.reward_weight,
        }
    if chosen.objective == "self-consistency":
        return gj.self_consistency(
            chosen.beta, chosen.particles, chosen.lam, churn=chosen.churn, min_gap=chosen.min_gap,
            s_min=chosen.s_min, t_max=chosen.t_max, **reward,
        )  # fmt: skip
    features = [gj.objectives.pixels] if model is None else [_seen(model, found.decode)]
    return gj.rollout(
        features, particles=chosen.particles, times=found.times(config.steps),
        solver=found.solver, **reward,
    )  # fmt: skip


def _seen(model: Any, decode: Any) -> Any:
    """The judge's features of x0."""
    return jax.tree_util.Partial(_features, model, decode)


def _features(model: Any, decode: Any, x0: jax.Array) -> jax.Array:
    return model.image(x0 if decode is None else decode(x0))[0]


def main(config: Config) -> None:
    """Learn the weight, or go on learning it."""
    logs.begin()
    if not config.data:
        raise SystemExit("say what to learn on: --data FOLDER, or a dataset of TFDS.")
    chosen, mesh = settings(config), checkpoints.devices(config.model)
    if chosen.batch % mesh.shape["data"]:
        raise SystemExit(
            f"--batch {chosen.batch} isn't a multiple of {mesh.shape['data']} devices."
        )
    if config.half_of is not None and config.half_of < 2:
        raise SystemExit(f"--half-of {config.half_of} pictures is nobody's half: give 2 at least.")
    each = chosen.particles if chosen.objective == "rollout" else 1
    if chosen.batch % each:
        raise SystemExit(f"--batch {chosen.batch} isn't a multiple of {each} particles.")
    if config.reward_weight and not config.reward:
        raise SystemExit("--reward-weight counts a reward: give one, --reward.")
    if PRESETS[config.preset].reward_weight and not config.reward:
        LOG.info("no --reward: learned without the one that %s has", config.preset)
    LOG.info("%s: %s", config.preset, chosen)
    ours = [name for name in chosen.ours if getattr(config, name, None) is None]
    LOG.info("not in the paper, our choice: %s", ", ".join(ours))
    found = checkpoints.load(config.model, mesh)
    model, add = None, None
    if config.reward:
        if found.kind != "prompts":
            raise SystemExit("--reward scores pictures by their prompts; this model has classes.")
        model = judge(config.reward, jnp.dtype(config.model.dtype), config.model.download)
        tokenizer = model.tokenizer
        if tokenizer is None:
            raise SystemExit(
                f"--reward {config.reward} reads no texts; expected a CLIP or SigLIP checkpoint "
                "with its tokenizer's files."
            )
        add = lambda said: {"tokens": np.asarray(tokenizer(said))}  # noqa: E731
    config.out.mkdir(parents=True, exist_ok=True)
    where = pictures.prepare(config.data, found, config.out / "latents", half_of=config.half_of)
    about = {
        "rule": config.rule, "see_state": config.see_state, "classes": found.classes,
        "text_dim": found.text_dim, "preset": dataclasses.asdict(chosen), "model": found.told,
    }  # fmt: skip
    checkpoints.same(config.out / "weight.json", about)
    net, rule = _net(about), _RULES[config.rule][0]

    def progress(step: int, metrics: dict[str, float]) -> None:
        if step % max(1, chosen.updates // 100) == 0:
            LOG.info("update %d of %d, loss %.5f", step, chosen.updates, metrics["loss"])

    rate = optax.cosine_decay_schedule(chosen.learning_rate, chosen.updates)
    batches: Any = pictures.Batches(where, found, chosen.batch // each, config.seed, add)
    phi = gj.fit_omega(
        jax.random.key(config.seed), net, found.denoise,
        pictures.Repeated(batches, each) if each > 1 else batches,
        rule=rule, uncond=pictures.null(found, add),
        objective=objective(chosen, config, found, model),
        optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate)),
        steps=chosen.updates, mesh=mesh if mesh.size > 1 else None, save_every=config.save_every,
        checkpoint_dir=(config.out / "run").absolute(), progress=progress,
    )  # fmt: skip
    draw(config, found, where, gj.guidance(rule, **net.weights(phi)))
    LOG.info("learned: %s; draw with it by --guide.weight %s", config.out / "omega.png", config.out)


def draw(
    config: Config, found: checkpoints.Checkpoint, where: pathlib.Path, guide: gj.Guidance
) -> None:
    """ω over the sampler's times, for some of what the pictures are of."""
    import matplotlib.pyplot as plt

    weight = gj.weights.as_weight(guide.omega)
    if weight.sees_state:
        LOG.info("a weight that sees the sample has no curve of its own: omega.png isn't drawn")
        return
    said = pictures.some(where, 8)
    times = jnp.asarray(found.times(config.steps), jnp.float32)
    process = found.denoise.process
    table = np.asarray(weight.table(times, found.condition(said), process=process))
    table = np.broadcast_to(table.reshape(len(times) - 1, -1), (len(times) - 1, len(said)))
    figure, axis = plt.subplots(figsize=(7.5, 4))
    for row, text in zip(table.T, said, strict=True):
        axis.plot(np.asarray(times)[:-1], row, linewidth=1.8, label=text[:40])
    axis.set_xlim(1.02, -0.02)
    axis.set_ylim(0, None)
    axis.set_xlabel("time t denoised from (1 noise → 0 data)")
    axis.set_ylabel("ω  (0: conditional model)")
    axis.legend(frameon=False, fontsize=8)
    figure.savefig(config.out / "omega.png", dpi=110, bbox_inches="tight")
    plt.close(figure)
    curves = {text: row.round(5).tolist() for text, row in zip(said, table.T, strict=True)}
    rounded = np.asarray(times).round(6).tolist()
    (config.out / "omega.json").write_text(
        json.dumps({"times": rounded, "omega": curves}, indent=1)
    )


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
