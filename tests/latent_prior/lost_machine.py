"""An entry script on a machine that may be lost after some steps, for test_machines.py."""

import importlib
import json
import os
import signal
import sys

from latent_prior.training import loop

_train = loop.train


def train_and_be_lost(accelerator, step, batches, state, options, **others):
    """Train until the step at which this machine dies: this process and its launcher."""

    def step_or_die(batch):
        if state.step == int(os.environ["LOST_AFTER"]):
            os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        return step(batch)

    _train(accelerator, step_or_die, batches, state, options, **others)


if __name__ == "__main__":
    if "LOST_AFTER" in os.environ:
        loop.train = train_and_be_lost
    module, words = json.loads(sys.argv[1])
    importlib.import_module(module).main(words)
