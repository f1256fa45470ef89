"""The tests of the TPU compiler need it; the Makefile's `plan-tpu` runs this folder where it is installed."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("libtpu") else ["test_tpu.py", "test_tpu_figures.py"]
