"""`flora-hpc bench`: parts of the program, measured on this machine."""

import typer

from flora_hpc.cli import (
    _bench_against,
    _bench_all,
    _bench_cluster,
    _bench_combines,
    _bench_comm,
    _bench_compare,
    _bench_features,
    _bench_log,
    _bench_methods,
    _bench_predict,
    _bench_ranks,
    _bench_report,
    _bench_round,
    _bench_scale,
    _bench_step,
    _bench_study,
)

app = typer.Typer(no_args_is_help=True)
app.command("step")(_bench_step.step)
app.command("all")(_bench_all.all_)
app.command("cluster")(_bench_cluster.cluster)
app.command("compare")(_bench_compare.compare)
app.command("combines")(_bench_combines.combines)
app.command("comm")(_bench_comm.comm)
app.command("round")(_bench_round.round_)
app.command("against")(_bench_against.against)
app.command("log")(_bench_log.log)
app.command("scale")(_bench_scale.scale)
app.command("features")(_bench_features.features)
app.command("report")(_bench_report.report)
app.command("ranks")(_bench_ranks.ranks)
app.command("methods")(_bench_methods.methods)
app.command("predict")(_bench_predict.predict)
app.command("study")(_bench_study.study)


@app.callback()
def bench() -> None:
    """Measure parts of the program on this machine."""
