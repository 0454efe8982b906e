"""Each thing that can be wrong with a launch, and what is said of it."""

from __future__ import annotations

import doctest
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import lightning_gradsched.preflight as preflight_package
from lightning_gradsched.preflight import findings as module
from lightning_gradsched.preflight.facts import Facts, checkouts, commit_of, versions
from lightning_gradsched.preflight.findings import Look, findings, report
from lightning_gradsched.preflight.host import tasks_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def rank(number: int, **other: Any) -> Facts:
    facts = Facts(
        rank=number,
        world_size=4,
        local_rank=number % 2,
        host="box",
        node=f"n{number // 2}",
        pid=100 + number,
        run_dir="/run",
        devices=2,
        n_nodes=2,
        versions={"torch": "2.13.0"},
        checkouts={"working directory": COMMIT},
        address=("10.0.0.1", 5),
        interface="GLOO_SOCKET_IFNAME=eth0",
    )
    return replace(facts, **other)


HEALTHY = [rank(i) for i in range(4)]


def found(arrived: list[Facts], looks: dict[int, Look] | None = None) -> str:
    return "\n".join(findings(arrived, looks or {}, 7.0))


def test_doctests() -> None:
    assert doctest.testmod(module).failed == 0
    assert doctest.testmod(preflight_package).failed == 0


def test_nothing_is_wrong_with_a_healthy_launch() -> None:
    assert found(HEALTHY, {i: Look(peer=0) for i in range(4)}) == ""


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"world_size": 3}, "got 4 (ranks 0-2), 3 (ranks 3)"),
        ({"rank": 2}, "expected rank 2 once, got it from n1 (pid 102), n1 (pid 103)"),
        ({"rank": 2}, "got 4 in 7 s: rank 3 did not come"),
        ({"node": "n2"}, "got 1 on n1, 1 on n2"),
        ({"node": "n2"}, "expected num_nodes=2, got ranks on 3 (n0, n1, n2)"),
        (
            {"versions": {}},
            "expected one version of torch on all ranks, got 2.13.0 (ranks 0-2), no",
        ),
        ({"checkouts": {}}, "got 0123456789ab (ranks 0-2), no checkout (ranks 3)"),
        ({"clock_ahead_s": -8.25}, "got n1's 8.2 s behind rank 0's"),
        ({"problems": ("no data",)}, "on rank 3: no data"),
    ],
)
def test_one_rank_that_differs_is_named(changes: dict[str, Any], said: str) -> None:
    text = found([*HEALTHY[:3], rank(3, **changes)])
    assert said in text
    assert "rank 3" in text or "ranks 3" in text or "n1" in text


def test_nodes_of_unlike_size_are_well_where_each_expects_its_own() -> None:
    uneven = [rank(i, node="n0" if i < 3 else "n1", devices=3 if i < 3 else 1) for i in range(4)]
    assert found(uneven) == ""


def test_looks_name_folder_and_way() -> None:
    looks = {0: Look(unwritable="No space"), 2: Look(unshared="is not there")}
    text = found(HEALTHY, looks)
    assert "got /run with rank 0 on n0: No space" in text
    assert "got /run with rank 2 on n1: is not there" in text
    nccl = [*HEALTHY[:1], rank(1, interface="NCCL_SOCKET_IFNAME==ib0"), *HEALTHY[2:]]
    text = found(nccl, {2: Look(unreachable="timed out", peer=1)})
    assert "rank 2 on n1 reaches rank 1 on n0 at 10.0.0.1 (NCCL_SOCKET_IFNAME==ib0)" in text
    assert "timed out at port 5: export NCCL_SOCKET_IFNAME," in text


def test_the_report_counts_and_numbers() -> None:
    assert report(["one", "two"], HEALTHY).splitlines() == [
        "pre-flight: 2 problems; 4 ranks on n0, n1 stop before anything is built",
        "  1. one",
        "  2. two",
    ]


def test_one_rank_of_each_node_tries_the_folder_and_the_node_before_it() -> None:
    tasks = tasks_of(HEALTHY, "marker", "job")
    assert [task.marker for task in tasks] == ["marker", None, "marker", None]
    assert [task.peer for task in tasks] == [2, None, 0, None]
    assert tasks[0].answer == "job box 102"
    alone = tasks_of(HEALTHY[:2], None, "job")
    assert [task.peer for task in alone] == [None, None]


def git_folder(path: Path) -> Path:
    git = path / ".git"
    git.mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    return git


def test_the_commit_of_a_checkout_is_read_without_git(tmp_path: Path) -> None:
    git = git_folder(tmp_path / "repo")
    (git / "packed-refs").write_text(f"# pack-refs\n{COMMIT} refs/heads/main\n")
    inside = tmp_path / "repo" / "deep" / "down"
    inside.mkdir(parents=True)
    assert commit_of(inside) == COMMIT
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "refs" / "heads" / "main").write_text("f" * 40 + "\n")  # newer than what is packed
    assert commit_of(inside) == "f" * 40

    own = git / "worktrees" / "other"
    own.mkdir(parents=True)
    (own / "HEAD").write_text(f"{COMMIT}\n")
    (own / "commondir").write_text("../..\n")
    worktree = tmp_path / "other"
    worktree.mkdir()
    (worktree / ".git").write_text(f"gitdir: {own}\n")
    assert commit_of(worktree) == COMMIT
    (own / "HEAD").write_text("ref: refs/heads/main\n")
    assert commit_of(worktree) == "f" * 40


def test_a_damaged_checkout_has_no_commit(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    assert commit_of(tmp_path) is None


def test_what_a_rank_says_of_itself() -> None:
    assert {"python", "torch", "lightning", "lightning-gradsched"} <= set(versions())
    assert set(checkouts()) <= {"working directory", "lightning_gradsched"}
