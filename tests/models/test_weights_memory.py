"""Memory: neither loading nor writing a Hugging Face folder holds a second copy of the model."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jax_rele.models import Decoder, DecoderConfig, to_hf

MEASURE = """
import sys, threading
import jax, jax.numpy as jnp
from jax_rele.models import from_hf, to_hf

def anonymous():  # bytes that no file backs: pages of the weights file are the system's to drop
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024

path, new = sys.argv[1:]
to_hf(*from_hf(path + "-tiny", dtype=jnp.float32), new + "-tiny")  # the libraries' own memory
peak, done = [0], threading.Event()

def watch():
    while not done.wait(0.0005):
        peak[0] = max(peak[0], anonymous())


def rise(run):
    before = peak[0] = anonymous()
    result = run()
    return result, peak[0] - before

threading.Thread(target=watch, daemon=True).start()
(model, variables), loading = rise(lambda: from_hf(path, dtype=jnp.float32))
to_hf(model, variables, new + "-first")  # what compiling takes
_, writing = rise(lambda: to_hf(model, variables, new))
done.set()
print(sum(leaf.nbytes for leaf in jax.tree.leaves(variables)), loading, writing)
"""


@pytest.mark.slow
def test_neither_loading_nor_writing_holds_a_second_copy(tmp_path):
    def write(path, layers, width, vocab_size):
        config = DecoderConfig(vocab_size, layers, width, 8, 8, width // 8, 3 * width, max_length=64)
        shapes = nn.unbox(jax.eval_shape(lambda: Decoder(config).init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))))
        to_hf(Decoder(config), jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes), path)

    write(tmp_path / "hf", 8, 640, 20_000)
    write(tmp_path / "hf-tiny", 2, 64, 64)
    output = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path / "hf", tmp_path / "new"], check=True, capture_output=True, text=True
    ).stdout
    size, loading, writing = map(int, output.split())
    print(
        f"model {size / 1e6:.0f} MB; peak while loading {loading / size:.2f} of it, while writing {writing / size:.2f}"
    )
    assert size > 150_000_000
    assert loading < 1.3 * size
    assert loading > 0.9 * size, "the measure sees the model"
    assert writing < 0.3 * size
