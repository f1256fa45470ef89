"""One of two processes of a run that does nothing but wait for the other, for faults.py."""

import sys
import time

from jax_rele.training import distributed

with distributed.join_processes():
    import numpy as np
    from jax.experimental import multihost_utils

    if sys.argv[1] == "collective":
        while True:
            multihost_utils.process_allgather(np.ones(4))
            print("up", flush=True)
            time.sleep(0.2)
    print("up", flush=True)
    if distributed.is_main():
        distributed.barrier("the other process")
    time.sleep(600)
