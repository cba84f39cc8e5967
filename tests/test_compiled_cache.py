"""The cache of compiled code belongs to the files that it was compiled from."""

import os

import controller


def test_each_state_of_the_files_has_a_folder_of_its_own(tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder in (ours, theirs / "deep"):
        folder.mkdir(parents=True)
        (folder / "kernel.py").write_text("a = 1\n")
    first = controller.cache_folder(ours, theirs)
    assert controller.cache_folder(ours, theirs) == first
    assert first.parent == ours / "__pycache__"
    (theirs / "deep" / "kernel.py").write_text("a = 2\n")
    second = controller.cache_folder(ours, theirs)
    (theirs / "deep" / "more.py").write_text("")
    third = controller.cache_folder(ours, theirs)
    assert len({first, second, third}) == 3


def test_numba_uses_it():
    import numba

    assert os.environ["NUMBA_CACHE_DIR"] == numba.config.CACHE_DIR
