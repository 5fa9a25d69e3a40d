"""The state of a running study as Prometheus metrics, which Ray serves; and the addresses where it does."""

from collections import Counter
from collections.abc import Sequence

import ray
from optuna.trial import FrozenTrial, TrialState
from ray._private import worker
from ray.util.metrics import Gauge

from study.results import front_hypervolume, front_of


class StudyMetrics:
    """Gauges `ray_study_…` with the study's name as a tag, on the metrics endpoint of the driver's node."""

    def __init__(self, name: str) -> None:
        self.tags = {"study": name}
        self.trials = Gauge("study_trials", "Trials by state.", ("study", "state"))
        self.front_size = Gauge("study_front_size", "Trials on the Pareto front.", ("study",))
        self.hypervolume = Gauge("study_hypervolume", "Hypervolume of the front, accuracy x seconds.", ("study",))
        self.accuracy = Gauge("study_best_adversarial_accuracy", "Highest adversarial accuracy.", ("study",))
        self.n_complete = -1

    def update(self, trials: Sequence[FrozenTrial]) -> None:
        """Set what has changed; the front is worked out anew only when a trial has completed."""
        counts = Counter(trial.state for trial in trials)
        for state in TrialState:
            self.trials.set(counts[state], self.tags | {"state": state.name})
        if counts[TrialState.COMPLETE] == self.n_complete:
            return
        self.n_complete = counts[TrialState.COMPLETE]
        front = front_of(list(trials))
        self.front_size.set(len(front), self.tags)
        self.hypervolume.set(front_hypervolume(list(trials)), self.tags)
        if front:
            self.accuracy.set(max(trial.values[0] for trial in front), self.tags)


def addresses() -> dict[str, str]:
    """Where the Ray that this process uses serves its dashboard, and metrics of this node; empty without either."""
    found = {}
    if worker._global_node and worker._global_node.webui_url:
        found["dashboard"] = f"http://{worker._global_node.webui_url.removeprefix('http://')}"
    here = ray.get_runtime_context().get_node_id()
    for node in ray.nodes():
        if node["NodeID"] == here and node.get("MetricsExportPort"):
            found["metrics"] = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    return found
