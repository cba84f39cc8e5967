"""What the page is shown of signals, whatever stamps they carry."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.web import feed

stamps_s = st.one_of(st.floats(), st.floats(0, 100), st.floats(0, 0.2), st.sampled_from([1e308, -1e308, 0.0, 1e11, -5.0]))


def drawn(record):
    """Columns of a record: number to values."""
    _, first, n, width = feed.HEAD.unpack_from(record)
    values = np.frombuffer(record, np.float32, offset=feed.HEAD.size).reshape(n, width, 2)
    return {(first + i) % 2**32: values[i] for i in range(n) if not np.isnan(values[i]).all()}


@given(st.lists(st.lists(stamps_s, max_size=30), max_size=8))
@settings(max_examples=200, deadline=None)
def test_no_stamps_raise_or_fill_memory_or_draw_what_was_not_there(takes):
    columns = feed.Columns(feed.EMG, 1)
    given = set()
    for t_s in takes:
        t_s = np.array(t_s, np.float64)
        with np.errstate(all="ignore"):
            at = np.floor(t_s * 100)
        given |= {int(one) % 2**32 for one in at[np.abs(at) < 1e15]}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            record = columns.take(t_s, np.ones((len(t_s), 1)))
        assert len(columns.x) == len(columns.at) <= 2
        if record:
            assert len(record) <= feed.HEAD.size + 8 * feed.GAP_COLUMNS
            assert set(drawn(record)) <= given


@pytest.mark.parametrize(
    "wrong", [[1.0, 1.02, 1.011, 1.0125, 1.02], [5.0, 2.0, 5.02, 5.03], [1e308], [np.nan, np.inf], [1e11, 3.0], [-1e9], [2.0] * 5000]
)
def test_after_wrong_stamps_the_picture_goes_on(wrong):
    columns = feed.Columns(feed.EMG, 1)
    columns.take(np.array(wrong), np.full((len(wrong), 1), 9.0))
    got = {}
    for start in range(1000, 1200, 10):  # ms
        t_s = 100.0 + np.arange(start, start + 10) / 1000 + 0.0005
        if record := columns.take(t_s, t_s[:, None]):
            got |= drawn(record)
    assert set(got) >= set(range(10101, 10119))
    assert got[10110] == pytest.approx(np.array([[101.1005, 101.1095]]), abs=1e-4)


def test_samples_that_go_back_a_little_are_left_out_and_the_rest_is_drawn():
    columns = feed.Columns(feed.EMG, 1)
    t_s = np.array([1.001, 1.011, 1.002, 1.012, 1.021])
    got = drawn(columns.take(t_s, np.array([[1.0], [2.0], [50.0], [3.0], [4.0]])))
    assert {at: values.tolist() for at, values in got.items()} == {100: [[1.0, 1.0]], 101: [[2.0, 3.0]]}


@pytest.mark.parametrize("at_s", [np.nan, np.inf, -np.inf])
def test_a_mark_at_no_time_is_not_made(at_s):
    made = []
    writer = type("Ring", (), {"put": lambda self, *row: made.append(row)})()
    fed = feed.Feed.__new__(feed.Feed)
    fed.ring = writer
    fed.mark(at_s, "spasm")
    assert made == []
    fed.mark(1.0, "spasm")
    assert len(made) == 1
