"""A training process without torch: it locks, logs, saves, resumes and leaves as the real ones do.

python -m tests.training.fake_trainer DIR STEPS [--seconds S] [--fail_at N] [--stubborn] [--with_child]
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from training import lifeline
from training.run_directory import RunDirectory, RunDirectoryBusy

SAVE_EVERY = 3


class Flag:
    is_raised = False

    def raise_it(self, *_) -> None:
        self.is_raised = True


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("steps", type=int)
    parser.add_argument("--seconds", type=float, default=0.02)
    parser.add_argument("--fail_at", type=int)
    parser.add_argument("--stubborn", action="store_true")
    parser.add_argument("--with_child", action="store_true")
    options = parser.parse_args()
    flag = Flag()
    signal.signal(signal.SIGTERM, signal.SIG_IGN if options.stubborn else flag.raise_it)
    lifeline.follow_parent()
    directory = RunDirectory(options.directory)
    try:
        with directory.lock():
            return train(directory, options, flag)
    except RunDirectoryBusy as error:
        print(error)  # noqa: T201
        return 2


def save(directory: RunDirectory, step: int) -> None:
    with directory.checkpoint(f"epoch_{step}", step=step) as folder:
        for name in ("selector", "policy"):
            (folder / f"{name}_checkpoint.safetensors").write_text(f"{name} after {step} steps")


def train(directory: RunDirectory, options: argparse.Namespace, flag: Flag) -> int:
    if options.with_child:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        (directory.path / "child.pid").write_text(str(child.pid))
    latest = directory.latest()
    first = int(latest.name.removeprefix("epoch_")) + 1 if latest else 1
    directory.rewind(first - 1)
    print(f"from step {first}", flush=True)  # noqa: T201
    for step in range(first, options.steps + 1):
        if step == options.fail_at:
            print("the disk is full", flush=True)  # noqa: T201
            return 1
        time.sleep(options.seconds)
        progress = {"done": step, "total": options.steps, "unit": "steps"}
        directory.log(step=step, epoch=step, policy_loss=1 / step, progress=progress)
        if step % SAVE_EVERY == 0 or step == options.steps or flag.is_raised:
            save(directory, step)
        if flag.is_raised:
            return 143
    (directory.path / "report.json").write_text(json.dumps({"pass_rate": 0.75}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
