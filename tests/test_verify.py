"""What `make verify` says of a damaged project."""

from commands import verify


def test_a_file_of_the_cache_that_is_not_what_its_name_says_is_named(tmp_path):
    right = tmp_path / "files/md5/5d/41402abc4b2a76b9719d911017c592"  # the MD5 of "hello"
    right.parent.mkdir(parents=True)
    right.write_text("hello")
    wrong = tmp_path / "files/md5/00/000000000000000000000000000000.dir"
    wrong.parent.mkdir(parents=True)
    wrong.write_text("[]")
    part = tmp_path / "files/md5/5d/.xyz.tmp"
    part.write_text("hel")
    assert verify.of_cache(tmp_path) == [
        f"{wrong}: damaged: remove it, then `make repro`, or `dvc pull` where there is a remote",
        f"{part}: part of a file that a killed run left: remove it",
    ]


def test_an_empty_or_torn_lock_file_is_named_with_the_command_that_brings_it_back(tmp_path):
    lock = tmp_path / "dvc.lock"
    for text in (
        "",
        "stages: {prepare: [",
        "3",
        "schema: '2.0'\nstages:\n  a:\n    cmd: b\n    outs:\n    - hash: md5\n",
    ):
        lock.write_text(text)
        (told,) = verify.of_lock(lock)
        assert str(lock) in told
        assert told.endswith(f"`git checkout {lock}` brings back the last one committed")
    lock.write_text("schema: '2.0'\nstages: {}\n")
    assert verify.of_lock(lock) == []


def test_a_torn_note_of_who_writes_what_is_named_with_the_command_that_removes_it(tmp_path):
    lock = tmp_path / "rwlock"
    assert verify.of_running(lock) == []
    lock.write_text("{}")
    assert verify.of_running(lock) == []
    lock.write_text("")
    assert verify.of_running(lock) == [
        f"{lock}: torn by a kill, and no run starts: `rm {lock}` once no other run goes on"
    ]


def test_a_part_that_a_killed_run_left_is_named(tmp_path):
    (tmp_path / "data/train").mkdir(parents=True)
    (tmp_path / "data/train/.a.npy.part.npy").write_text("")
    assert [
        line.endswith("part of a file that a killed run left: remove it") for line in verify.of_parts(tmp_path)
    ] == [True]


def test_an_empty_cache_is_no_whole_one(tmp_path):
    assert verify.of_cache(tmp_path) == [
        f"{tmp_path}: holds no file: `make repro` fills it, or `dvc pull` where there is a remote"
    ]
