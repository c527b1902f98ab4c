import subprocess
import sys

import guidejax as gj

LIBRARIES = (
    "hackable_diffusion", "diffrax", "keras", "swirl_dynamics", "maxdiffusion", "torch",
    "diffusers", "interfaces", "flax.nnx",
)  # fmt: skip


def test_interop_imports_none_of_the_libraries():
    script = f"""
import sys
import guidejax
assert "guidejax.interop" not in sys.modules
import guidejax.interop
print(*sorted(set({LIBRARIES}) & set(sys.modules)))
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


def test_it_is_found_from_the_top():
    assert gj.interop.keras.network
    assert "interop" in dir(gj)
