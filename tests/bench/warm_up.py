"""Train with rates that rise linearly over the first epoch: an idea beyond the paper that is being measured.

python -m tests.bench.warm_up --data DIR --results DIR --set method=lora bitfit=False lr=0.001 ...
"""

import argparse
from unittest import mock

from vptsp_core import preset, run
from vptsp_core.method.loop import Loop
from vptsp_core.method.presets import parse_change

plain = Loop.train_epoch


def train_epoch(self, epoch):
    if epoch:
        return plain(self, epoch)
    step, steps, taken = self.step, len(self.sampler), 0
    groups = [(group, group["lr"]) for optimizer in self.optimizers for group in optimizer.param_groups]

    def warm(*batch):
        nonlocal taken
        taken += 1
        for group, rate in groups:
            group["lr"] = rate * taken / steps
        return step(*batch)

    self.step = warm
    try:
        return plain(self, 0)
    finally:
        self.step = step


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--results", required=True)
    parser.add_argument("--set", nargs="+", dest="changes", default=[])
    args = parser.parse_args()
    with mock.patch.object(Loop, "train_epoch", train_epoch):
        config = preset("cub200-vitti16", **dict(map(parse_change, args.changes)))
        print(run(config, data=args.data, results=args.results).metrics)
