"""The fault families of the campaign: what each does, what it cannot show, its short tests."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Family:
    """One row of docs/reliability.md."""

    name: str  # of the module in tests/faults
    title: str
    option: str  # how much is done
    full: int
    what: str
    cannot: str
    short: tuple[str, ...]  # what `make test` runs of it: FILE::FUNCTION


FAMILIES = (
    Family(
        name="kill9",
        title="kill -9 of every process in every state",
        option="kills",
        full=1000,
        what=(
            "Four nodes, each with an Orthanc, workers and a scanner (dcmtk) of its own, are killed"
            " at random moments of the state that is due, started again at once, and sometimes"
            " killed again while they start. A plan says how often each process dies in each state"
            " (table below). Storage commitment is on. *all* is the service and its workers in one"
            " instant; *submit* is the import by a person. One of the four nodes is started from a"
            " shell and keeps its worker itself, so that both die together; the others are forked"
            " from a process that has imported everything already."
        ),
        cannot=(
            "The page cache survives kill -9: that Success means *on the disk* is shown by the"
            " trace of system calls in `tests/integration/test_durability_trace.py`, and by nothing"
            " short of pulling a plug. The series are small phantoms with a tiny network; with"
            " `--series DIR` a real one goes through."
        ),
        short=(
            "tests/faults/test_campaign.py::test_nothing_is_lost_by_kill_9_of_service_and_workers",
            "tests/dicom_node/test_service.py::test_what_it_received_is_there_after_kill_9",
            "tests/dicom_node/test_sender.py::test_killed_sender_leaves_only_the_unrecorded_instances_to_send_again",
        ),
    ),
    Family(
        name="migration",
        title="kill -9 while the database is made, or brought up to date",
        option="kills",
        full=60,
        what=(
            "The service is killed at random moments of its first start, and of the start that"
            " migrates the database of an older version with 20,000 rows of audit trail. After each"
            " kill the database must be readable at the old or at the new revision, never between"
            " them; the last start must find every row."
        ),
        cannot="Older databases than the first released schema do not exist.",
        short=("tests/faults/test_campaign.py::test_a_killed_migration_is_done_or_not_begun",),
    ),
    Family(
        name="full_disk",
        title="full disk",
        option="fillings",
        full=40,
        what=(
            "The state folder is a tmpfs of 24 MB. A file of ours fills it to the last bytes at"
            " random moments and goes again: half of the times with the node's guard"
            " (`files.min_free_bytes`), half without, so that database, results and received files"
            " all meet the end of the disk."
        ),
        cannot=(
            "A tmpfs reports ENOSPC at once; network file systems and quotas may do so late, at"
            " fsync. Needs root (mount)."
        ),
        short=(
            "tests/integration/test_bad_input.py::test_a_full_disk_refuses_with_a700_and_recovers_by_itself",
            "tests/dicom_node/test_intake.py::test_full_disk_asks_the_sender_to_try_again",
        ),
    ),
    Family(
        name="network",
        title="network cut, slow, half-dead",
        option="rounds",
        full=4,
        what=(
            "A TCP proxy of ours stands between scanner and node, and between node and archive. In"
            " every round each of eight kinds of weather meets a series on each side: refused,"
            " closed or reset after any number of bytes, replies swallowed from any moment on,"
            " silence on an open connection, 50 ms for each 4 kB, 97 bytes at a time."
        ),
        cannot="Loopback loses and reorders no packets; TCP hides that from both sides anyway.",
        short=(
            "tests/faults/test_campaign.py::test_a_bad_network_loses_and_doubles_nothing",
            "tests/dicom_node/network/test_scu.py::test_aborted_association_is_resumed_on_a_fresh_one",
            "tests/dicom_node/network/test_scp.py::test_association_dropped_in_the_middle_keeps_what_was_acknowledged",
        ),
    ),
    Family(
        name="lying_pacs",
        title="archive that answers Success and stores nothing",
        option="series",
        full=30,
        what=(
            "An archive of ours (pynetdicom) says Success for one, some or all instances of a"
            " series and keeps none of them: once, twice, or for ever. Its storage commitment tells"
            " the truth. What is missing must be sent again, and only that; what never helps ends"
            " DEAD with the reason, and `requeue` sends it once the archive is mended."
        ),
        cannot="An archive that lies in its storage commitment, too, cannot be found out by DICOM.",
        short=(
            "tests/dicom_node/network/test_commitment.py::test_lying_archive_is_found_and_named",
            "tests/integration/test_storage_commitment.py::test_orthanc_commits_and_what_it_never_had_is_sent_again",
        ),
    ),
    Family(
        name="partial_reject",
        title="archive that refuses part of a series",
        option="series",
        full=36,
        what=(
            "The same archive answers each instance by itself: 0xA700, 0x0110 and 0xB000 once or"
            " twice, 0xC000 and 0xA900 for good, an abort, no answer in time. Only what is missing"
            " may be sent again; no instance may be taken twice; a warning counts as taken."
        ),
        cannot="The statuses are those of the table in `dicom_node/retry.py`; vendors have more.",
        short=(
            "tests/dicom_node/test_sender.py::test_passing_fault_is_tried_again_with_what_is_missing_only",
            "tests/dicom_node/test_sender.py::test_lasting_refusal_ends_the_delivery_with_a_reason",
            "tests/dicom_node/test_sender.py::test_warning_counts_as_sent",
        ),
    ),
    Family(
        name="same_uids",
        title="duplicate and conflicting UIDs",
        option="rounds",
        full=8,
        what=(
            "A scanner sends a series over four associations at once, again while it is received,"
            " again after it was delivered, and in another transfer syntax; another one sends other"
            " pixels, another position or another series under known SOP Instance UIDs. Duplicates"
            " are acknowledged and change nothing; conflicts are refused with 0x0111."
        ),
        cannot="Who of two senders of one UID is right, nobody can know: the first one is kept.",
        short=(
            "tests/dicom_node/test_intake.py::test_second_copy_in_any_encoding_succeeds_and_changes_nothing",
            "tests/dicom_node/test_intake.py::test_other_content_under_a_known_uid_is_a_conflict",
            "tests/dicom_node/network/test_scp.py::test_parallel_associations_that_send_the_same_series_make_one",
            "tests/dicom_node/network/test_scp.py::test_conflict_is_answered_with_its_status",
        ),
    ),
    Family(
        name="clock",
        title="wall clock set forwards and backwards",
        option="jumps",
        full=40,
        what=(
            "Service and workers run with a wall clock that a small library of ours, loaded before"
            " libc, sets for all of them at once, by 10 s to 7 days to and fro; the monotonic clock"
            " goes on, as when a real clock is set. The jump comes between the two halves of a"
            " series, while it is computed (and the worker dies), while it waits for an archive"
            " that is away, while it is sent and committed, and while the node is down. Every"
            " series must end within four minutes, and none may be taken for complete early."
        ),
        cannot="Time zones play no part: the node knows UTC alone. Archive and scanner keep time.",
        short=(
            "tests/faults/test_campaign.py::test_a_clock_that_is_set_holds_up_nothing",
            "tests/dicom_node/test_housekeeping.py::test_a_clock_that_is_set_restarts_what_waits",
        ),
    ),
    Family(
        name="sqlite_lock",
        title="SQLite locked by another process",
        option="locks",
        full=30,
        what=(
            "Another process holds the database's write lock for 0.1 to 5 s, and every fifteenth"
            " time for 34 s, longer than the node waits (30 s), while series pass. What cannot be"
            " recorded is not acknowledged, and everything goes on by itself afterwards."
        ),
        cannot="On PostgreSQL the same code waits for row locks; see the store's own tests.",
        short=(
            "tests/faults/test_campaign.py::test_a_locked_database_is_waited_for",
            "tests/dicom_node/test_intake.py::test_database_that_does_not_commit_is_no_success",
        ),
    ),
    Family(
        name="pacs_down",
        title="archive down for a simulated day",
        option="series",
        full=30,
        what=(
            "The archive is away while series go on arriving, for 86.4 s in which every pause of"
            " the sender is a thousandth of its default: a day of its back-off and attempts. The"
            " node is killed three times meanwhile. Then Orthanc comes back, and everything must"
            " arrive once."
        ),
        cannot="What a day of real traffic needs of the disk: see `docs/operations.md`.",
        short=(
            "tests/faults/test_campaign.py::test_an_archive_that_was_away_gets_everything_once",
            "tests/dicom_node/test_sender.py::test_nobody_there_is_tried_again_and_given_up_at_last",
        ),
    ),
    Family(
        name="connections",
        title="useless connections",
        option="count",
        full=10000,
        what=(
            "Twelve kinds of junk, half-open, stalled, dripping, aborted and rejected connections,"
            " hundreds of them open at any time, while a scanner sends one instance after another:"
            " each within 5 s, memory within 20 MB, no thread or descriptor left behind."
        ),
        cannot="A flood that fills the machine's network or its socket tables is not ours to stop.",
        short=(
            "tests/faults/test_connections.py::test_a_scanner_is_served_while_others_flood",
            "tests/faults/test_connections.py::test_a_node_without_file_descriptors_goes_on_serving",
        ),
    ),
    Family(
        name="fuzz",
        title="hostile input",
        option="exchanges",
        full=100000,
        what=(
            "Mutated exchanges from the association request to the data set and the page's HTTP, on"
            " real sockets, with a well-behaved scanner beside them: no crash, no hang, no file"
            " outside the state folder, memory within its bound."
        ),
        cannot="A fuzzer shows the presence of defects, never their absence.",
        short=("tests/faults/test_fuzz.py::test_hostile_input_harms_nobody",),
    ),
)
