"""The faults of docs/reliability.md, each with the test that injects it."""

from __future__ import annotations

from typing import NamedTuple


class Fault(NamedTuple):
    """``test``: one case of one test, as pytest names it; it records what the table shows.

    ``saves``: whether the job of the test saves checkpoints; one that does not loses all its steps.
    """

    name: str
    test: str
    saves: bool = False


def _of(file: str, saves: bool, faults: dict[str, str]) -> list[Fault]:
    return [Fault(name, f"tests/{file}::{test}", saves) for test, name in faults.items()]


FAULTS: tuple[Fault, ...] = (
    *_of(
        "survival/test_programs.py",
        True,
        {
            "test_where_a_node_is_lost_the_others_go_on": "a node is lost under elastic"
            " `torchrun --nnodes=1:2`: the other goes on alone",
            "test_torchrun_restarts_a_job_whose_rank_was_killed": "a rank is killed under"
            " `torchrun --max-restarts`: restarted, and at the end the same bits",
            "test_nothing_is_left_after_any_end[SIGTERM]": "preemption: SIGTERM to one rank",
            "test_nothing_is_left_after_any_end[SIGKILL of one rank]": "a rank is killed under"
            " Lightning's own launcher",
            "test_nothing_is_left_after_any_end[exception]": "an exception in rank 0",
            "test_nothing_is_left_after_any_end[exception on one rank]": "an exception in another"
            " rank",
            "test_nothing_is_left_after_any_end[Ctrl-C]": "Ctrl-C",
        },
    ),
    *_of(
        "survival/test_fallback.py",
        True,
        {
            "test_the_one_before_is_taken_on_all_ranks[truncated]": "the newest checkpoint is"
            " truncated",
            "test_the_one_before_is_taken_on_all_ranks[flipped]": "one bit of the newest checkpoint"
            " has flipped",
            "test_the_one_before_is_taken_on_all_ranks[empty]": "the newest checkpoint is empty",
            "test_where_none_is_whole_all_are_named_on_all_ranks": "all checkpoints are damaged",
            "test_a_checkpoint_that_is_not_there_is_an_error": "a checkpoint that is not there",
            "test_a_checkpoint_that_would_run_code_is_refused": "a checkpoint that would run code",
            "test_a_full_disk_is_an_error_on_all_ranks_and_leaves_the_last_good_one": "the disk"
            " fills up while a checkpoint is written",
        },
    ),
    *_of(
        "survival/test_checkpoint_file.py",
        False,
        {
            "test_sizes_are_checked_before_memory_is_given": "a checkpoint that claims a tensor of"
            " 4 TB",
        },
    ),
    *_of(
        "slurm/test_survival.py",
        True,
        {
            "test_preemption_by_a_job_of_a_higher_partition": "SLURM preempts the job for one of a"
            " higher partition",
            "test_time_limit": "a SLURM job's time limit is set to within the minute",
            "test_a_node_that_goes_down": "a SLURM node goes down",
        },
    ),
    *_of(
        "slurm/test_preflight.py",
        False,
        {
            "test_wrong_tasks_per_node": "a wrong `--ntasks-per-node`",
            "test_a_rank_that_does_not_come": "a rank of a step exits before it begins",
            "test_a_master_port_in_use": "the port is in use",
            "test_unlike_versions_and_checkouts": "nodes have other versions or checkouts",
            "test_an_interface_that_does_not_route": "a network interface that does not route",
        },
    ),
    *_of(
        "slurm/test_launch.py",
        False,
        {"test_a_node_without_the_data": "a node without the data"},
    ),
    *_of(
        "faults/test_lost_ranks.py",
        False,
        {
            "test_a_rank_that_dies_is_named_with_the_group[kill-2]": "a rank is killed between two"
            " steps",
            "test_a_rank_that_dies_is_named_with_the_group[kill_in_backward-1]": "a rank is killed"
            " in backward",
            "test_a_rank_that_is_stopped_is_first_warned_of": "a rank is stopped (SIGSTOP)",
            "test_a_rank_that_only_is_late_is_said_to_be_alive": "a rank is late by more than"
            " `stall_timeout_s`",
            "test_a_rank_that_never_comes_is_told_of_when_the_group_is_formed": "a rank never"
            " comes",
            "test_where_the_rank_with_the_store_is_lost_it_is_the_suspect[kill]": "the rank that"
            " hosts the store is killed",
        },
    ),
    *_of(
        "faults/test_programs.py",
        False,
        {
            "test_the_others_learn_why_a_rank_ended[raise-its process ended after"
            " ZeroDivisionError: no such luck-1]": "an exception in a plain loop",
            "test_the_others_learn_why_a_rank_ended[interrupt-its process ended after"
            " KeyboardInterrupt--2]": "Ctrl-C on one rank of a plain loop",
            "test_a_rank_whose_link_goes_down_is_named": "a node's link goes down",
        },
    ),
    *_of(
        "faults/test_unlike_ranks.py",
        False,
        {
            "test_an_unlike_rank_is_named_on_all[shape]": "a rank has another model",
            "test_an_unlike_rank_is_named_on_all[planner]": "a rank has other settings",
            "test_an_unlike_rank_is_named_on_all[version]": "a rank has another version",
        },
    ),
    *_of(
        "faults/test_out_of_step.py",
        False,
        {
            "test_a_layer_unfrozen_on_one_rank_is_named_on_all": "a layer is unfrozen on one rank",
            "test_ranks_that_would_not_plan_after_the_same_backward_all_say_so": "a rank has caught"
            " an exception in backward and gone on alone",
        },
    ),
    *_of(
        "faults/test_anomaly.py",
        False,
        {"test_in_lightning": "a NaN in one rank's gradient, with `detect_anomaly`"},
    ),
    *_of(
        "zoo/data/test_loader.py",
        False,
        {
            "test_a_worker_that_dies_is_named": "a data worker is killed",
            "test_a_worker_that_hangs_is_named": "a data worker hangs",
            "test_an_error_of_the_data_set_arrives_as_itself[1]": "a data file is truncated, read"
            " by a worker",
        },
    ),
    *_of(
        "zoo/data/test_hdf5.py",
        False,
        {
            "test_a_truncated_shard_is_named": "a data file is truncated before the start",
            "test_missing_and_foreign_shards_are_named": "a data file is missing, or of another"
            " kind",
            "test_an_empty_split_is_named": "a split without samples",
        },
    ),
    *_of(
        "zoo/data/test_sampler.py",
        False,
        {
            "test_fewer_samples_than_ranks_is_named_on_every_rank[0]": "fewer samples than ranks",
            "test_a_position_in_other_data_is_refused": "a run is resumed with other data",
        },
    ),
    *_of(
        "zoo/data/test_shards.py",
        False,
        {"test_a_full_disk_is_named": "the disk fills up while data are written"},
    ),
    *_of(
        "zoo/test_resume.py",
        True,
        {
            "test_a_damaged_one_is_passed_over_with_both_named": "`resume=auto` finds damaged files"
            " only"
        },
    ),
)
