"""A Dask LocalCluster of two workers in a process of its own; prints its address and the workers'
process ids."""

import sys

from distributed import LocalCluster

if __name__ == "__main__":
    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1"
    ) as cluster:
        print(cluster.scheduler_address, *(worker.pid for worker in cluster.workers.values()),
              flush=True)
        sys.stdin.read()  # until the test closes it
