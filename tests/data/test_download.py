"""Downloads, from servers on the loopback that each misbehave in one way."""

import hashlib
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from vptsp_core.data import download as module
from vptsp_core.data.download import download
from vptsp_core.errors import DataError
from vptsp_core.system import locks
from vptsp_core.system.bars import amount

CONTENT = os.urandom(3_000_000)
MD5 = "md5:" + hashlib.md5(CONTENT).hexdigest()
SHA256 = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


class Server:
    """Serves one file, and keeps the requests it saw.

    Attributes:
        cuts: at each request, after how many bytes the connection ends; then whole.
    """

    def __init__(self):
        self.content, self.ranges, self.status, self.type = CONTENT, True, 200, "application/zip"
        self.cuts: list[int] = []
        self.length = True
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
                body, start = server.content, 0
                asked = self.headers.get("Range") if server.ranges else None
                if asked:
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


def part(target, content=None):
    """The unfinished file, with some content."""
    path = target.with_name("file.zip.part")
    if content is not None:
        target.parent.mkdir()
        path.write_bytes(content)
    return path


def only(target):
    """The file is there and whole, and nothing else."""
    return target.read_bytes() == CONTENT and [path.name for path in target.parent.iterdir()] == ["file.zip"]


@pytest.mark.parametrize("checksum", [MD5, SHA256], ids=["md5", "sha256"])
def test_a_file_is_fetched_once(server, target, checksum):
    assert download([server.url], target, checksum) == target
    assert only(target) and len(server.seen) == 1
    download([server.url], target, checksum)
    assert len(server.seen) == 1, "what is there and right is not fetched again"


@pytest.mark.parametrize("size", [len(CONTENT), None])
def test_a_cut_connection_is_resumed(server, target, size):
    server.cuts = [200_000] * 10
    download([server.url], target, MD5, size)
    assert only(target) and len(server.seen) == 11, "each that brings something counts as the first"
    assert [seen.get("Range") for seen in server.seen][:3] == [None, "bytes=200000-", "bytes=400000-"]


def test_a_later_call_resumes(server, target):
    server.cuts = [20_000] + [0] * module.TRIES
    with pytest.raises(DataError, match=f"the connection ended after 20000 bytes, {module.TRIES} times in a row"):
        download([server.url], target, MD5)
    assert part(target).read_bytes() == CONTENT[:20_000] and not target.exists()
    server.cuts = []
    download([server.url], target, MD5)
    assert only(target) and server.seen[-1]["Range"] == "bytes=20000-"


def test_a_server_without_ranges_starts_over_and_is_given_up(server, second, target):
    server.ranges, server.cuts = False, [2_000_000] * 20
    download([server.url, second.url], target, MD5)
    assert only(target) and len(server.seen) == module.TRIES
    assert second.seen[0]["Range"] == "bytes=2000000-", "the checksum decides, so another source's bytes will do"


def test_an_undeclared_length_is_verified_by_the_checksum(server, second, target):
    server.length, server.cuts = False, [2_000_000]
    download([server.url, second.url], target, MD5)
    assert only(target) and len(second.seen) == 1


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (503, module.TRIES)])
def test_a_dead_source_is_passed_over_and_a_busy_one_tried_again(server, second, target, status, requests, capsys):
    server.status = status
    download([server.url, second.url], target, MD5)
    assert only(target) and f"HTTP {status}" in capsys.readouterr().err and len(server.seen) == requests


def test_a_refused_connection_is_passed_over(server, second, target, capsys):
    server.httpd.server_close()
    download([server.url, second.url], target, MD5)
    assert only(target) and "refused" in capsys.readouterr().err


def test_a_wrong_checksum_leaves_nothing(server, second, target, capsys):
    server.content = bytes(len(CONTENT))
    with pytest.raises(DataError) as caught:
        download([server.url], target, MD5)
    found = hashlib.md5(bytes(len(CONTENT))).hexdigest()
    assert f"md5 {found} instead of {MD5[4:]}" in str(caught.value) and "\n" not in str(caught.value)
    assert list(target.parent.iterdir()) == []
    download([server.url, second.url], target, MD5)
    assert only(target) and found in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"x" * 1000, CONTENT + b"more"])
def test_a_part_of_another_file_is_found_and_fetched_again(server, target, content):
    part(target, content)
    download([server.url], target, MD5)
    assert only(target) and [seen.get("Range") for seen in server.seen] == [f"bytes={len(content)}-", None]


@pytest.mark.parametrize(("size", "requests"), [(len(CONTENT), 0), (None, 1)])
def test_a_finished_part_is_only_verified(server, target, size, requests):
    part(target, CONTENT)
    download([server.url], target, MD5, size)
    assert only(target) and len(server.seen) == requests


def test_another_size_is_refused_before_it_is_fetched(server, target):
    with pytest.raises(DataError, match=f"offers {len(CONTENT)} bytes instead of 1000"):
        download([server.url], target, MD5, 1000)
    assert list(target.parent.iterdir()) == []


def test_a_web_page_does_not_replace_what_is_here(server, target):
    part(target, CONTENT[:1000])
    server.content, server.type, server.ranges = b"<html>log in</html>", "text/html; charset=utf-8", False
    with pytest.raises(DataError, match="sends a web page"):
        download([server.url], target, MD5)
    assert part(target).read_bytes() == CONTENT[:1000]


def test_a_wrong_file_in_its_place_is_not_touched(server, target):
    target.parent.mkdir()
    target.write_bytes(b"mine")
    with pytest.raises(DataError, match="is not the published file .*; delete it, or put the right one there"):
        download([server.url], target, MD5)
    assert target.read_bytes() == b"mine" and not server.seen


def test_too_little_room_is_said_before(server, target, monkeypatch):
    usage = module.shutil.disk_usage(target.parents[1])
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    with pytest.raises(DataError, match=r"are still to come, the disk has 1\.0 MB free"):
        download([server.url], target, MD5)
    target.parent.rmdir()
    part(target, CONTENT[:2_500_000])
    download([server.url], target, MD5)  # only the rest has to fit
    assert only(target)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_is_no_fault_of_the_source(server, second, target):
    target.parent.mkdir()
    part(target).symlink_to("/dev/full")
    with pytest.raises(DataError, match="the disk is full; free some, the same command resumes it"):
        download([server.url, second.url], target, MD5)
    assert not second.seen


def test_two_that_fetch_the_same_file(server, target, monkeypatch):
    go, first, waits, said = threading.Event(), threading.Event(), threading.Event(), []
    monkeypatch.setattr(locks, "print", lambda text, file: (said.append(text), waits.set()), raising=False)
    server.begun = lambda: (first.set(), go.wait(20))
    done = []
    threads = [threading.Thread(target=lambda: done.append(download([server.url], target, MD5))) for _ in "12"]
    threads[0].start()
    assert first.wait(20)
    threads[1].start()
    waits.wait(10)
    go.set()
    for thread in threads:
        thread.join(20)
    assert done == [target, target] and only(target) and len(server.seen) == 1
    assert len(said) == 1 and said[0].startswith("file.zip: another process is fetching it; waiting")


def test_amounts_are_in_a_unit_that_shows_them():
    assert [amount(count) for count in (0, 1_250_000, 9_990_000_000, 10_000_000_000, 1.2e11)] == [
        "0.0 MB", "1.2 MB", "9990.0 MB", "10.0 GB", "120.0 GB"]  # fmt: skip
