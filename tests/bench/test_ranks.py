import json

import pytest
from typer.testing import CliRunner

from flora_hpc.bench import ranks as part
from flora_hpc.cli import app
from flora_hpc.errors import UserError
from flora_hpc.shared import Shared


def test_efficiency_is_training_over_all_seconds() -> None:
    assert part.efficiency(0.3, {"reports": 0.05, "wire": 0.05, "schedule": 0.1}) == pytest.approx(0.6)


def test_every_rank_has_work_where_there_are_as_many_clients() -> None:
    setup = part.setup_of(50, "fixed", Shared())
    assert (part.ranks_with_work(setup, 20), part.ranks_with_work(setup, 64)) == (20, 50)


def test_reports_of_all_ranks_are_one_round() -> None:
    record = part.merged(part.reports_of(5, 12))
    assert record.row["num_clients"] == 12
    assert record.ranks["rank"].tolist() == [0, 1, 2, 3, 4]


def test_a_sample_of_rows_makes_reports_small_and_keeps_the_sums() -> None:
    whole, sampled = (part.reports_of(4, 4000, most) for most in (None, 40))
    assert sum(map(len, sampled)) < sum(map(len, whole)) / 10
    of_all, of_some = part.merged(whole), part.merged(sampled)
    assert len(of_some.clients) == 40
    for name in ("num_clients", "num_examples", "uplink_bytes", "train_loss"):
        assert of_some.row[name] == of_all.row[name]


def test_the_choice_of_rows_counts_and_a_wrong_one_is_refused() -> None:
    words = ["bench", "ranks", "--simulate", "3", "--clients", "30", "--repeats", "1"]
    found = json.loads(CliRunner().invoke(app, [*words, "--records", "sample 5", "--json"]).stdout)
    assert found["records"] == "sample 5"
    others = sum(found[f"{name}_seconds"] for name in ("choice", "reports", "wire")) + found["schedule_seconds"]["fixed"]
    training = found["train_seconds"]
    assert found["efficiency"]["fixed"]["given"] == pytest.approx(training / (training + others))
    error = CliRunner().invoke(app, [*words, "--records", "some"]).exception
    assert isinstance(error, UserError)
    assert str(error) == "--records: 'some' is none of: all, none, or sample N, such as sample 1000"


def test_every_term_is_named_and_none_is_missing_in_the_efficiency() -> None:
    result = CliRunner().invoke(app, ["bench", "ranks", "--simulate", "6", "--clients", "600", "--repeats", "1", "--json"])
    assert result.exit_code == 0, result.exception
    found = json.loads(result.stdout)
    assert (found["num_ranks"], found["num_clients"], found["num_registered"]) == (6, 600, 6000)
    assert found["train_seconds"] == pytest.approx(100 * 0.0012)
    for sizes in ("fixed", "drawn"):
        others = found["schedule_seconds"][sizes] + found["reports_seconds"] + found["wire_seconds"]
        shares = found["efficiency"][sizes]
        assert shares["given"] == pytest.approx(0.12 / (0.12 + others))
        assert shares["ten_times"] == pytest.approx(0.012 / (0.012 + others))
    assert found["log_bytes_per_client"] > 0
    assert found["ranks_with_work"]["cpu"] == 6


def test_the_page_names_the_terms() -> None:
    result = CliRunner().invoke(app, ["bench", "ranks", "--simulate", "2", "--clients", "10", "--repeats", "1"])
    assert result.exit_code == 0, result.exception
    for term in ("training, each rank", "cohort, sizes, groups", "reports, rank 0", "wire to rank 0", "efficiency"):
        assert term in result.stdout
