"""Tracker: an MLflow run, in MLFLOW_TRACKING_URI or in mlflow/ of the run directory; needs flora-hpc[mlflow]."""

import logging
import os
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from flora_hpc.observers._tracker import RunIdFile, Start, numbers
from flora_hpc.observers._trackerthread import TrackerThread
from flora_hpc.records.schema import Rows

PACKAGE = "mlflow"
STATUS = {"finished": "FINISHED", "failed": "FAILED"}  # a stopped or interrupted run is KILLED until it is resumed
LAST = "seconds/round"  # logged last: a round with this number is complete
MOST = 100  # parameters that a server takes at once


class MLflow:
    """Uses only MLflow's client; the global run of the module stays untouched."""

    _client: Any
    _run: str

    def start(self, run: Start) -> Collection[int]:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # no request that nobody asked for
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:  # files: SQLite, MLflow's own choice, locks up on many clusters' file systems
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            uri = (run.folder / "mlflow").absolute().as_uri()
        from mlflow.tracking import MlflowClient

        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it logs a line for every try
        self._client = MlflowClient(tracking_uri=uri)
        run_id = RunIdFile(run.folder / "mlflow.json", uri)
        if run.resumed and (content := run_id.read()):
            self._run = content["run"]
            self._client.update_run(self._run, status="RUNNING")
            return {metric.step for metric in self._client.get_metric_history(self._run, LAST)}
        created = self._client.create_run(experiment(self._client), run_name=run.folder.absolute().name)
        self._run = created.info.run_id
        run_id.write(run=self._run)
        self._log_parameters(run.parameters)
        return ()

    def _log_parameters(self, parameters: dict[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(key, str(value)) for key, value in parameters.items()]
        for start in range(0, len(params), MOST):
            self._client.log_batch(self._run, params=params[start : start + MOST])

    def log(self, row: Rows) -> None:
        from mlflow.entities import Metric

        now, number, values = time.time_ns() // 1_000_000, int(row["round"][0]), numbers(row)
        ordered = sorted(values.items(), key=lambda pair: pair[0] == LAST)
        self._client.log_batch(self._run, metrics=[Metric(name, value, now, number) for name, value in ordered])

    def end(self, status: str) -> None:
        self._client.set_tag(self._run, "status", status)
        self._client.set_terminated(self._run, STATUS.get(status, "KILLED"))


def experiment(client: Any) -> str:
    """The id of the experiment MLFLOW_EXPERIMENT_NAME, created if missing; tasks of a job array may create it at the same time."""
    from mlflow.exceptions import MlflowException

    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "flora_hpc")
    try:
        return str(client.create_experiment(name))
    except MlflowException:
        existing = client.get_experiment_by_name(name)
        if existing is None:
            raise
        return str(existing.experiment_id)


def build(folder: Path) -> TrackerThread:
    return TrackerThread("mlflow", folder, MLflow())
