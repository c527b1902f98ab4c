"""A stand-in with Keras's `stateless_call`; `experiments.interop` has Keras itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidejax as gj
from guidejax.interop import keras
from tests.interop.common import LABELS, NOISE, NULL, sample
from tests.interop.common import network as plain


class Variable:
    def __init__(self, value):
        self.value = jnp.asarray(value)


class Model:
    """Scales the small network; counts its calls in a variable, as batch norm does."""

    built = True

    def __init__(self):
        self.trainable_variables = [Variable(1.0)]
        self.non_trainable_variables = [Variable(0)]

    def stateless_call(self, trainable, non_trainable, *inputs, training):
        assert training is False
        x, t, label = inputs[0] if len(inputs) == 1 else inputs
        return trainable[0] * plain(x, t, label), [non_trainable[0] + 1]


FLOW = gj.processes.rectified_flow()
GUIDE = gj.guidance(gj.cfg, omega=2.0)


@pytest.mark.parametrize("inputs", [None, lambda x, t, c: (x, t, c), lambda x, t, c: [x, t, c]])
def test_a_model_is_a_network_under_jit_and_scan(inputs):
    network, params = keras.network(Model(), inputs)
    traces = []

    @jax.jit
    def run(params):
        traces.append(1)
        denoise = gj.denoiser(network, FLOW, params=params)
        options = {"cond": LABELS, "uncond": jnp.int32(NULL), "guidance": GUIDE}
        times = np.linspace(0.9, 0.1, 6).astype(np.float32)
        return gj.sample(jax.random.key(0), denoise, NOISE, times=times, **options)

    np.testing.assert_allclose(run(params), sample(FLOW, "x0", GUIDE), rtol=1e-6, atol=1e-6)
    other = run(jax.tree.map(lambda leaf: 2 * leaf, params))
    assert not np.allclose(other, run(params))
    assert len(traces) == 1


def test_without_a_condition_the_list_has_two():
    class Two(Model):
        def stateless_call(self, trainable, non_trainable, inputs, training):
            assert len(inputs) == 2
            return inputs[0], non_trainable

    network, params = keras.network(Two())
    denoise = gj.denoiser(network, FLOW, params=params)
    np.testing.assert_array_equal(denoise(NOISE, 0.5), NOISE)


def test_what_is_wrong_is_said():
    with pytest.raises(ValueError, match="stateless_call"):
        keras.network(lambda x: x)
    model = Model()
    model.built = False
    with pytest.raises(ValueError, match="isn't built"):
        keras.network(model)
