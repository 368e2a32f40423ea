"""Tracker: an MLflow run, in MLFLOW_TRACKING_URI or in mlflow/ of the run directory; needs flora-hpc[mlflow]."""

import logging
import os
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from flora_hpc.observers._tracker import Bookmark, Start, numbers
from flora_hpc.observers._trackerthread import TrackerThread
from flora_hpc.records.schema import Rows

PACKAGE = "mlflow"
STATUS = {"finished": "FINISHED", "failed": "FAILED"}  # what was stopped or interrupted is KILLED, until it goes on
LAST = "seconds/round"  # logged last: a round that has it is whole
MOST = 100  # parameters that a server takes at once


class MLflow:
    """Uses MLflow's client alone; the module's global run stays untouched."""

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

        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # a line for every try
        self._client = MlflowClient(tracking_uri=uri)
        bookmark = Bookmark(run.folder / "mlflow.json", uri)
        if run.goes_on and (kept := bookmark.read()):
            self._run = kept["run"]
            self._client.update_run(self._run, status="RUNNING")
            return {metric.step for metric in self._client.get_metric_history(self._run, LAST)}
        made = self._client.create_run(experiment(self._client), run_name=run.folder.absolute().name)
        self._run = made.info.run_id
        bookmark.write(run=self._run)
        self._log_parameters(run.parameters)
        return ()

    def _log_parameters(self, parameters: dict[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(key, str(value)) for key, value in parameters.items()]
        for start in range(0, len(params), MOST):
            self._client.log_batch(self._run, params=params[start : start + MOST])

    def log(self, row: Rows) -> None:
        from mlflow.entities import Metric

        now, number, found = time.time_ns() // 1_000_000, int(row["round"][0]), numbers(row)
        ordered = sorted(found.items(), key=lambda pair: pair[0] == LAST)
        self._client.log_batch(self._run, metrics=[Metric(name, value, now, number) for name, value in ordered])

    def end(self, status: str) -> None:
        self._client.set_tag(self._run, "status", status)
        self._client.set_terminated(self._run, STATUS.get(status, "KILLED"))


def experiment(client: Any) -> str:
    """The id of the experiment MLFLOW_EXPERIMENT_NAME, made when there is none; tasks of a job array may make it at once."""
    from mlflow.exceptions import MlflowException

    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "flora_hpc")
    try:
        return str(client.create_experiment(name))
    except MlflowException:
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return str(found.experiment_id)


def build(folder: Path) -> TrackerThread:
    return TrackerThread("mlflow", folder, MLflow())
