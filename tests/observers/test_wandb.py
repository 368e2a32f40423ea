from pathlib import Path

from flora_hpc.observers.wandb import move_replaced


def test_folders_of_a_run_that_was_written_anew_are_moved(tmp_path: Path) -> None:
    names = [
        "offline-run-20260101_120000-mine",
        "offline-run-20260101_130000-mine",
        "offline-run-20260101_120000-other",
        "run-1-mine",
    ]
    for name in names:
        (tmp_path / name).mkdir()
    move_replaced(tmp_path / names[1], "mine")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names[1:], "replaced"])
    assert [path.name for path in (tmp_path / "replaced").iterdir()] == names[:1]
