"""A Dask cluster of Slurm jobs, one GPU each: start it on a login node and leave it running.

    pip install dask-jobqueue
    python docs/clusters/slurm.py --jobs 8 --partition gpu --walltime 08:00:00
    efficient-medsam2 precompute -c cluster --scheduler ADDRESS      (it prints the address)

A job that ends by its time limit costs the shard in its hands. Jobs that are still queued join
when they start.
"""

import argparse
import signal
import sys

from dask_jobqueue import SLURMCluster


def main() -> None:
    """Submit the jobs and wait for Ctrl-C."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--jobs", type=int, default=4)
    options.add_argument("--partition")
    options.add_argument("--account")
    options.add_argument("--walltime", default="04:00:00")
    options.add_argument("--memory", default="32GB", help="of a job")
    options.add_argument("--cores", type=int, default=4, help="of a job, for its one worker")
    options.add_argument("--cpu", action="store_true", help="ask for no GPU")
    options.add_argument("--interface", help="network between nodes, such as ib0")
    options.add_argument("--print-script", action="store_true", help="show the job and end")
    chosen = options.parse_args()
    gpu = not chosen.cpu
    cluster = SLURMCluster(
        queue=chosen.partition,
        account=chosen.account,
        walltime=chosen.walltime,
        memory=chosen.memory,
        job_cpu=chosen.cores,
        # One task at a time in a worker: a teacher needs the whole device, or all the cores.
        cores=1,
        processes=1,
        python=sys.executable,
        interface=chosen.interface,
        job_extra_directives=["--gres=gpu:1"] if gpu else [],
        worker_extra_args=["--resources", "GPU=1"] if gpu else [],
        job_script_prologue=[f"export OMP_NUM_THREADS={chosen.cores}"],
    )
    if chosen.print_script:
        print(cluster.job_script())
        return
    cluster.scale(jobs=chosen.jobs)
    print(f"--scheduler {cluster.scheduler_address}   dashboard: {cluster.dashboard_link}")
    try:
        signal.pause()
    except KeyboardInterrupt:
        cluster.close()


if __name__ == "__main__":
    main()
