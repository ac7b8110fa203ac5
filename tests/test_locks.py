"""Lock files whose folder comes and goes."""

from vptsp_core import locks


def test_a_folder_that_its_last_holder_removes_just_now_is_made_again(tmp_path, monkeypatch):
    path, tries = tmp_path / "run" / ".lock", []

    def late(file, mode):
        tries.append(file)
        if len(tries) == 1:
            file.parent.rmdir()  # the other one's, between the two
        return open(file, mode)

    monkeypatch.setattr(locks, "open", late, raising=False)
    with locks.locked(path, "waiting"):
        assert path.exists()
    assert tries == [path, path] and not path.exists()
