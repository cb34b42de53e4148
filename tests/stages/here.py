"""A cluster whose tasks run in this process, each pickled as if it went to another machine."""

import pickle
from dataclasses import dataclass, field

import cloudpickle


@dataclass
class ClusterHere:
    """The counterpart of ``stages.cluster.Cluster``.

    Attributes:
        order: 1: tasks end in order; -1: the last one first.
        workers: how many it claims to have.
        names: of the runs, in order.
        tasks: every task that was given.
    """

    order: int = 1
    workers: int = 1
    names: list = field(default_factory=list)
    tasks: list = field(default_factory=list)

    def worker_count(self):
        return self.workers

    def run(self, function, tasks, *, name, gpu=False):
        self.names.append(name)
        self.tasks += tasks
        for number in range(len(tasks))[:: self.order]:
            sent = pickle.loads(cloudpickle.dumps(tasks[number]))
            yield number, pickle.loads(pickle.dumps(function(sent)))
