import os
import random
import subprocess
import sys

import numpy as np
import pytest

from controller import compiled_ring
from controller.ring import RingReader, RingWriter, create


@pytest.fixture
def ring():
    fd = create("test", 4096)
    writer, reader = RingWriter(fd), RingReader(fd)
    os.close(fd)
    yield writer, reader
    writer.close()
    reader.close()


def test_records_come_back_in_order_across_many_laps(ring):
    writer, reader = ring
    rng = random.Random(1)
    for i in range(5000):
        payloads = [rng.randbytes(rng.randrange(0, 200)) for _ in range(rng.randrange(1, 6))]
        for payload in payloads:
            writer.put(i % 7, payload)
        assert list(reader.records()) == [(i % 7, payload) for payload in payloads]
    assert reader.lost == 0


def test_a_writer_never_waits_and_the_reader_counts_what_it_lost(ring):
    writer, reader = ring
    for i in range(1000):
        writer.put(1, i.to_bytes(4, "little"))
    got = list(reader.records())
    writer.put(1, b"next")
    got += list(reader.records())
    assert got[-1] == (1, b"next")
    assert reader.lost + len(got) == 1001
    assert reader.lost > 0


def test_compiled_code_writes_the_same_records(ring):
    writer, reader = ring
    compiled = compiled_ring.compiled(writer)
    rng = random.Random(2)
    for i in range(3000):
        parts = [np.frombuffer(rng.randbytes(8 * rng.randrange(0, 12))) for _ in range(3)]
        if i % 3:
            at = compiled_ring.begin(compiled, i % 7, sum(part.nbytes for part in parts))
            for part in parts:
                at = compiled_ring.append(compiled, at, part)
            compiled_ring.publish(compiled, at)
        else:
            writer.put(i % 7, b"".join(part.tobytes() for part in parts))
        assert list(reader.records()) == [(i % 7, b"".join(part.tobytes() for part in parts))]
    assert reader.lost == 0


@pytest.mark.safety("A10", "G7")
def test_what_is_durable_is_said_by_the_reader_and_seen_by_the_writer(ring):
    writer, reader = ring
    assert (writer.count, writer.durable) == (0, 0)
    for i in range(300):
        writer.put(1, bytes(i % 50))
        compiled = compiled_ring.compiled(writer)
        compiled_ring.publish(compiled, compiled_ring.begin(compiled, 1, 0))
        assert writer.count == 2 * i + 2
        assert len(list(reader.records())) == 2
        assert writer.durable == 2 * i  # read is not yet durable
        reader.durable = reader.number
        assert writer.durable == writer.count
    assert reader.lost == 0


def test_lost_records_count_as_read_and_only_the_reader_knows_them(ring):
    writer, reader = ring
    for _ in range(1000):
        writer.put(1, bytes(100))
    list(reader.records())
    assert reader.behind == 1000
    writer.put(1, b"next")
    assert list(reader.records()) == [(1, b"next")]
    assert reader.behind == 0
    assert reader.number == writer.count == 1001
    assert reader.lost == 1000


def test_a_record_too_large_is_refused(ring):
    writer, _ = ring
    with pytest.raises(ValueError, match="too large"):
        writer.put(1, bytes(2000))


def test_what_a_dead_writer_wrote_can_still_be_read():
    fd = create("test", 4096)
    reader = RingReader(fd)
    code = f"import os; from controller.ring import RingWriter; RingWriter({fd}).put(3, b'last words'); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code], pass_fds=[fd], check=False).returncode == -9
    os.close(fd)
    assert list(reader.records()) == [(3, b"last words")]
    reader.close()
