"""The Slurm script, with commands in Slurm's place that do on this machine what Slurm's would do on several."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from calvin_folder import losses, tiny_run

from robovlms.policy.checkpoint import checkpoints

pytestmark = pytest.mark.slow  # torchrun and all that is imported, in every test

ROOT = Path(__file__).parents[1]
COMMANDS = {
    "srun": 'shift\nexec "$@"\n',  # its first argument is an option of its own
    "scontrol": 'if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> "$SAID"; fi\n',
    "torchrun": f'exec {sys.executable} -m torch.distributed.run "$@"\n',
}
ENDLESS = ["schedule.total=1000000 step", "trainer.save_every=1000000 step", "trainer.validate_every=1000000 step"]


@pytest.fixture
def slurm(tmp_path):
    """Return what starts the script with overrides; it notes in `said` what it asks Slurm for."""
    (tmp_path / "bin").mkdir()
    for name, body in COMMANDS.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/bash\n{body}")
        path.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SAID": str(tmp_path / "said"), "PYTHONPATH": str(ROOT),
        "SLURM_JOB_NODELIST": "local", "SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NUM_NODES": "1",
        "GPUS_PER_NODE": "2", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1",
    }  # fmt: skip

    def start(overrides):
        command = ["bash", str(ROOT / "scripts" / "slurm_train.sbatch"), *overrides]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        jobs.append(subprocess.Popen(command, cwd=ROOT, env=environment, **pipes))
        return jobs[-1]

    jobs = []
    yield start
    for job in jobs:
        if job.poll() is None:
            for process in [*psutil.Process(job.pid).children(recursive=True), job]:
                process.kill()
            job.communicate()


@pytest.mark.parametrize(("sent", "is_queued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_a_job_whose_time_is_up_saves_and_is_queued_again_once(calvin_folder, tmp_path, slurm, sent, is_queued):
    run = tmp_path / "run"
    job = slurm(tiny_run(calvin_folder, run, *ENDLESS))
    deadline = time.monotonic() + 120
    while not ((run / "metrics.jsonl").is_file() and losses(run)):
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    job.send_signal(sent)
    output, _ = job.communicate(timeout=60)
    assert len(checkpoints(run)) == 1, output
    said = tmp_path / "said"
    assert (said.read_text() if said.is_file() else "") == (f"requeue {os.getpid()}\n" if is_queued else "")
    assert (job.returncode == 0) == is_queued


@pytest.mark.parametrize(("overrides", "status"), [(["schedule.total=1 step"], 0), (["optimizer.lr=-1"], 1)])
def test_a_job_that_ends_by_itself_is_not_queued_again(calvin_folder, tmp_path, slurm, overrides, status):
    job = slurm(tiny_run(calvin_folder, tmp_path / "run", "schedule.warmup=0 step", *overrides))
    output, _ = job.communicate(timeout=120)
    assert job.returncode == status, output
    assert not (tmp_path / "said").exists()
