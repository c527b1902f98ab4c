"""Image datasets by name, as numpy batches {"x0": float32 in [-1, 1], "cond": int32 or encoded}.

Any image dataset of the TFDS catalogue, and two that need no download, the digits and the emoji:

    batches = gj.data.load("digits", batch_size=128)
    test = gj.data.Images("digits", "test").arrays()
    captioned = gj.data.Images("emoji", label_key="caption", encode=tokenize)

TensorFlow is never imported to read them.
"""

try:
    import array_record as _array_record  # noqa: F401
    import grain as _grain  # noqa: F401
    import importlib_resources as _importlib_resources  # noqa: F401
    import PIL as _pil  # noqa: F401
    import tensorflow_datasets as _tensorflow_datasets  # noqa: F401
except ImportError as error:
    raise ImportError(
        f'guidejax.data needs the extra "data" ({error}): pip install "guidejax[data]"',
        name=error.name,
    ) from error

from guidejax.data.digits import Digits as Digits
from guidejax.data.emoji import Emoji as Emoji
from guidejax.data.examples import load_examples as load_examples
from guidejax.data.examples import write_examples as write_examples
from guidejax.data.pipeline import Batches as Batches
from guidejax.data.pipeline import grouped as grouped
from guidejax.data.pipeline import load as load
from guidejax.data.sources import Images as Images
from guidejax.data.sources import Info as Info
from guidejax.data.sources import prepare as prepare
