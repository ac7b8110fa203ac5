"""Downloads, against servers on the loopback that misbehave in one way each."""

import errno
import hashlib
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from vptsp_core.data import download as module
from vptsp_core.data.download import download
from vptsp_core.data.partfile import PartFile, amount
from vptsp_core.errors import DataError
from vptsp_core.system import locks
from vptsp_core.system.locks import locked

CONTENT = os.urandom(3_000_000)
MD5 = "md5:" + hashlib.md5(CONTENT).hexdigest()
SHA256 = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


class Server:
    """Serves one file, and keeps the requests it saw.

    Attributes:
        cuts: at each request, after how many bytes the connection ends; then whole.
    """

    def __init__(self):
        self.content, self.ranges, self.etag, self.status, self.type = CONTENT, True, '"1"', 200, "application/zip"
        self.cuts: list[int] = []
        self.length = True
        self.raw: list[bytes] = []  # whole answers that come first
        self.begun = lambda: None
        self.seen: list[dict] = []
        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.httpd.handle_error = lambda *args: None  # clients hang up here on purpose
        self.url = f"http://127.0.0.1:{self.httpd.server_port}/file.zip"
        threading.Thread(target=self.httpd.serve_forever, args=(0.01,), daemon=True).start()

    def _handler(self):
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.seen.append(dict(self.headers))
                if server.raw:
                    self.wfile.write(server.raw.pop(0))
                    return
                body, start = server.content, 0
                asked = self.headers.get("Range") if server.ranges else None
                if asked and self.headers.get("If-Range") in (None, server.etag):
                    start = int(asked.removeprefix("bytes=").rstrip("-"))
                if start and start >= len(body):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(body)}")
                    self.end_headers()
                    return
                self.send_response(206 if start else server.status)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
                if server.length:
                    self.send_header("Content-Length", str(len(body) - start))
                if server.etag:
                    self.send_header("ETag", server.etag)
                self.send_header("Content-Type", server.type)
                self.end_headers()
                cut = server.cuts.pop(0) if server.cuts else None
                server.begun()
                self.wfile.write(body[start:] if cut is None else body[start : start + cut])

            def log_message(self, *args):
                pass

        return Handler


@pytest.fixture
def server():
    made = Server()
    yield made
    made.httpd.shutdown()
    made.httpd.server_close()


@pytest.fixture
def second():
    made = Server()
    yield made
    made.httpd.shutdown()
    made.httpd.server_close()


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(module, "PAUSE", 0.0)


@pytest.fixture
def target(tmp_path):
    return tmp_path / "downloads" / "file.zip"


def only(target):
    """The file is there and whole, and nothing else."""
    return target.read_bytes() == CONTENT and [path.name for path in target.parent.iterdir()] == ["file.zip"]


@pytest.mark.parametrize("checksum", [MD5, SHA256, None], ids=["md5", "sha256", "none"])
def test_a_file_is_fetched_once(server, target, checksum):
    assert download([server.url], target, len(CONTENT), checksum) == target
    assert only(target) and len(server.seen) == 1
    download([server.url], target, len(CONTENT), checksum)
    assert len(server.seen) == 1, "what is there and right is not fetched again"


def test_a_cut_connection_goes_on_where_it_was(server, target):
    server.cuts = [1_200_000, 1_100_000]
    download([server.url], target, len(CONTENT), MD5)
    assert only(target)
    assert [seen.get("Range") for seen in server.seen] == [None, "bytes=1200000-", "bytes=2300000-"]
    assert [seen.get("If-Range") for seen in server.seen] == [None, '"1"', '"1"']


def test_a_later_call_goes_on_where_it_was(server, target, monkeypatch):
    server.cuts = [20_000] + [0] * (module.TRIES - 1)
    with pytest.raises(DataError, match=f"the connection ended after 20000 bytes, {module.TRIES} times in a row"):
        download([server.url], target, len(CONTENT), MD5)
    assert PartFile(target).path.read_bytes() == CONTENT[:20_000] and not target.exists()
    download([server.url], target, len(CONTENT), MD5)
    assert only(target) and server.seen[-1]["Range"] == "bytes=20000-"


def test_a_server_without_ranges_starts_over(server, target):
    server.ranges, server.cuts = False, [2_000_000]
    download([server.url], target, len(CONTENT), MD5)
    assert only(target) and server.seen[-1]["Range"] == "bytes=2000000-"


def test_a_server_that_always_cuts_is_given_up(server, second, target, capsys):
    server.ranges, server.cuts = False, [2_000_000] * 20
    download([server.url, second.url], target, len(CONTENT), MD5)
    assert only(target) and len(server.seen) == module.TRIES
    assert second.seen[0]["Range"] == "bytes=2000000-", "the checksum decides, so another source's bytes will do"
    assert second.seen[0].get("If-Range") is None, "an ETag is the first server's own"


@pytest.mark.parametrize("status", [404, 403])
def test_a_dead_source_is_passed_over(server, second, target, status, capsys):
    server.status = status
    download([server.url, second.url], target, len(CONTENT), MD5)
    assert only(target) and f"HTTP {status}" in capsys.readouterr().err and len(server.seen) == 1


def test_a_refused_connection_is_passed_over(server, second, target, capsys):
    server.httpd.server_close()
    download([server.url, second.url], target, len(CONTENT), MD5)
    assert only(target) and "refused" in capsys.readouterr().err


def test_a_busy_server_is_tried_again(server, target):
    server.status = 503
    with pytest.raises(DataError, match="HTTP 503"):
        download([server.url], target, len(CONTENT), MD5)
    assert len(server.seen) == module.TRIES


def test_a_wrong_checksum_leaves_nothing(server, second, target, capsys):
    server.content = bytes(len(CONTENT))
    with pytest.raises(DataError) as caught:
        download([server.url], target, len(CONTENT), MD5)
    found = hashlib.md5(bytes(len(CONTENT))).hexdigest()
    assert f"md5 {found} instead of {MD5[4:]}" in str(caught.value) and "\n" not in str(caught.value)
    assert list(target.parent.iterdir()) == []
    download([server.url, second.url], target, len(CONTENT), MD5)
    assert only(target) and found in capsys.readouterr().err


def test_a_wrong_beginning_is_found_and_fetched_again(server, target):
    """What an earlier call left may be another file's; the checksum says so, and the same source gets a second go."""
    target.parent.mkdir()
    PartFile(target).path.write_bytes(b"x" * 1000)
    download([server.url], target, None, MD5)
    assert only(target) and [seen.get("Range") for seen in server.seen] == ["bytes=1000-", None]


def test_a_file_that_changed_on_the_server_starts_over(server, target):
    server.content, server.etag, server.cuts = bytes(len(CONTENT)), '"0"', [5_000] + [0] * (module.TRIES - 1)
    with pytest.raises(DataError):
        download([server.url], target)
    server.content, server.etag = CONTENT, '"1"'
    download([server.url], target)
    assert only(target) and server.seen[-1]["If-Range"] == '"0"'


@pytest.mark.parametrize("etag", [None, 'W/"1"'])
def test_without_a_version_or_a_checksum_nothing_is_gone_on_with(server, target, etag):
    server.etag, server.cuts = etag, [2_000_000]
    download([server.url], target)
    assert only(target) and "Range" not in server.seen[-1]


def test_another_size_is_refused_before_it_is_fetched(server, target):
    with pytest.raises(DataError, match=f"offers {len(CONTENT)} bytes instead of 1000"):
        download([server.url], target, 1000, MD5)
    assert not target.exists() and not PartFile(target).path.exists()


def test_an_undeclared_length_is_bounded(server, target):
    server.length = False
    with pytest.raises(DataError, match="sends more than 1000 bytes"):
        download([server.url], target, 1000, MD5)
    assert not target.exists()


def test_a_web_page_does_not_replace_what_is_here(server, target):
    target.parent.mkdir()
    PartFile(target).path.write_bytes(CONTENT[:1000])
    server.content, server.type, server.ranges = b"<html>log in</html>", "text/html; charset=utf-8", False
    with pytest.raises(DataError, match="sends a web page"):
        download([server.url], target, None, MD5)
    assert PartFile(target).path.read_bytes() == CONTENT[:1000]


def test_a_finished_part_is_only_verified(server, target):
    target.parent.mkdir()
    PartFile(target).path.write_bytes(CONTENT)
    download([server.url], target, len(CONTENT), MD5)
    assert only(target) and not server.seen


@pytest.mark.parametrize("extra", [0, 10])
def test_a_part_as_long_as_the_file_or_longer(server, target, extra):
    """The size is not published: the server answers 416, and says how long the file is."""
    target.parent.mkdir()
    PartFile(target).path.write_bytes(CONTENT + bytes(extra))
    download([server.url], target, None, MD5)
    assert only(target)


def test_a_wrong_file_in_its_place_is_not_touched(server, target):
    target.parent.mkdir()
    target.write_bytes(b"mine")
    with pytest.raises(DataError, match=f"4 bytes instead of {len(CONTENT)}"):
        download([server.url], target, len(CONTENT), MD5)
    assert target.read_bytes() == b"mine" and not server.seen


def test_too_little_room_is_said_before(server, target, monkeypatch):
    usage = module.shutil.disk_usage(target.parents[1])
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    with pytest.raises(DataError, match=r"are still to come, the disk has 1\.0 MB free"):
        download([server.url], target, len(CONTENT), MD5)
    target.parent.mkdir(exist_ok=True)
    PartFile(target).path.write_bytes(CONTENT[:2_500_000])
    download([server.url], target, len(CONTENT), MD5)  # only the rest has to fit
    assert only(target)


def test_a_full_disk_keeps_what_was_fetched(server, second, target, monkeypatch):
    written = 0

    def write(file, chunk):
        nonlocal written
        if written > 1_000_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written += file.write(chunk)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write", write)
        with pytest.raises(DataError, match="the disk is full; free some, the same command goes on") as caught:
            download([server.url, second.url], target, len(CONTENT), MD5)
    assert "\n" not in str(caught.value) and not second.seen, "no other source mends a full disk"
    assert PartFile(target).path.read_bytes() == CONTENT[:written]
    download([server.url], target, len(CONTENT), MD5)
    assert only(target) and server.seen[-1]["Range"] == f"bytes={written}-"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_real_full_disk(server, target):
    target.parent.mkdir()
    PartFile(target).path.symlink_to("/dev/full")
    with pytest.raises(DataError, match="the disk is full"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(PartFile, "begin", lambda *args: None)
        download([server.url], target, len(CONTENT), MD5)


def test_a_folder_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot write .*; choose another folder"):
        download([server.url], tmp_path / "file" / "file.zip", len(CONTENT), MD5)


def test_short_writes_are_finished():
    class Short:
        got = b""

        def write(self, view):
            self.got += bytes(view[:7])
            return len(view[:7])

    file = Short()
    module._write(file, CONTENT[:100])
    assert file.got == CONTENT[:100]


# ---- what came is kept ---------------------------------------------------------------------------


def test_any_progress_counts(server, target):
    server.cuts = [200_000] * 10
    download([server.url], target, len(CONTENT), MD5)
    assert only(target) and len(server.seen) == 11


@pytest.mark.parametrize("length", [True, False])
def test_a_second_source_without_ranges_shortens_nothing(server, second, target, length, capsys):
    server.cuts, second.ranges, second.length = [2_000_000] + [0] * (module.TRIES - 1), False, length
    second.cuts = [1_000] * module.TRIES
    with pytest.raises(DataError, match="the connection ended after 2000000 bytes"):
        download([server.url, second.url], target, None, MD5)
    assert PartFile(target).path.read_bytes() == CONTENT[:2_000_000]
    second.cuts = [2_500_000]
    download([second.url], target, None, MD5)
    assert only(target) and second.seen[-1]["Range"] == "bytes=2500000-", "it gave more than there was"


@pytest.mark.parametrize("ranges", [True, False])
def test_a_cut_without_a_declared_length_is_a_cut(server, target, ranges):
    server.length, server.ranges, server.cuts = False, ranges, [2_000_000] + ([] if ranges else [1_000, 2_000_000])
    download([server.url], target, None, MD5)
    assert only(target) and server.seen[1]["Range"] == "bytes=2000000-"
    assert len(server.seen) == (2 if ranges else 4)


def test_another_file_of_undeclared_length_is_told_from_a_cut(server, target):
    server.length, server.ranges, server.content = False, False, b"x" * 1000
    with pytest.raises(DataError, match="md5 .* instead of"):
        download([server.url], target, None, MD5)
    assert not PartFile(target).path.exists() and len(server.seen) < 6


def test_a_cut_within_the_headers_is_a_cut(server, target):
    target.parent.mkdir()
    PartFile(target).path.write_bytes(CONTENT[:2_000_000])
    server.raw = [b"HTT", b"HTTP/1.1 200 OK\r\nContent-Le", b""]
    download([server.url], target, None, MD5)
    assert only(target) and server.seen[-1]["Range"] == "bytes=2000000-"


def test_a_range_of_unknown_total_that_is_cut(server, target):
    head = b"HTTP/1.1 206 X\r\nContent-Range: bytes 2000000-2999999/*\r\nContent-Length: 500000\r\n\r\n"
    target.parent.mkdir()
    PartFile(target).path.write_bytes(CONTENT[:2_000_000])
    server.raw = [head + CONTENT[2_000_000:2_500_000]]
    download([server.url], target, None, MD5)
    assert only(target) and server.seen[-1]["Range"] == "bytes=2500000-"


def test_a_server_of_other_ranges_is_asked_for_the_whole(server, target):
    target.parent.mkdir()
    PartFile(target).path.write_bytes(CONTENT[:2_000_000])
    server.raw = [b"HTTP/1.1 206 X\r\nContent-Range: bytes 5-9/3000000\r\nContent-Length: 5\r\n\r\n12345"]
    server.cuts = [1_000, None]
    download([server.url], target, None, MD5)
    assert only(target) and ["Range" in seen for seen in server.seen] == [True, False, False]


def test_a_reset_keeps_what_came(target):
    """A response whose connection is reset after 100,000 bytes, less than one read."""

    class Response:
        left = CONTENT[:100_000]

        def read1(self, count):
            if not self.left:
                raise ConnectionResetError
            got, self.left = self.left[: min(count, 60_000)], self.left[min(count, 60_000) :]
            return got

        def read(self, count):
            raise ConnectionResetError

    target.parent.mkdir()
    with pytest.raises(ConnectionResetError):
        module._put(Response(), PartFile(target), 0, len(CONTENT))
    assert PartFile(target).path.read_bytes() == CONTENT[:100_000]


@pytest.mark.parametrize(
    "place", ["http://[bad/", "http://a..b/x", "http://127.0.0.1:99999/", "http://h:0x/", "file:///etc/passwd", "//"]
)
def test_a_redirection_to_nowhere_is_passed_over(server, second, target, place, capsys):
    server.raw = [f"HTTP/1.1 302 X\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n".encode()] * 20
    download([server.url, second.url], target, None, MD5)
    assert only(target) and capsys.readouterr().err.count("\n") == 1
    target.unlink()
    with pytest.raises(DataError) as caught:
        download([server.url], target, None, MD5)
    assert "\n" not in str(caught.value)


def test_a_length_that_no_file_has_is_none(server, target):
    server.raw = [b"HTTP/1.1 200 X\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n" + CONTENT]
    download([server.url], target, None, MD5)
    assert only(target) and len(server.seen) == 1


# ---- two at once ---------------------------------------------------------------------------------


def test_two_that_fetch_the_same_file(server, target, monkeypatch):
    go, first, waits, said = threading.Event(), threading.Event(), threading.Event(), []
    monkeypatch.setattr(locks, "print", lambda text, file: (said.append(text), waits.set()), raising=False)
    server.begun = lambda: (first.set(), go.wait(20))
    done = []
    threads = [threading.Thread(target=lambda: done.append(download([server.url], target, None, MD5))) for _ in "12"]
    threads[0].start()
    assert first.wait(20)
    threads[1].start()
    waits.wait(10)
    go.set()
    for thread in threads:
        thread.join(20)
    assert done == [target, target] and only(target) and len(server.seen) == 1
    assert len(said) == 1 and said[0].startswith("file.zip: another process is fetching it; waiting for process ")


def test_a_lock_is_one_even_where_its_file_was_deleted(tmp_path):
    """Three at once, each deletes the file when it is done: never are two of them inside."""
    inside, most, lock = 0, 0, threading.Lock()

    def work():
        nonlocal inside, most
        for _ in range(50):
            with locked(tmp_path / "lock", "waiting"):
                with lock:
                    inside += 1
                    most = max(most, inside)
                with lock:
                    inside -= 1

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1 and list(tmp_path.iterdir()) == []


def test_amounts_are_in_a_unit_that_shows_them():
    assert [amount(count) for count in (0, 1_250_000, 9_990_000_000, 10_000_000_000, 1.2e11)] == [
        "0.0 MB", "1.2 MB", "9990.0 MB", "10.0 GB", "120.0 GB"]  # fmt: skip
