"""Downloads from servers on this machine, each with one fault."""

import hashlib
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from vptsp_core.data import download as module
from vptsp_core.data.download import download
from vptsp_core.errors import DataError

CONTENT = os.urandom(3_000_000)
MD5 = "md5:" + hashlib.md5(CONTENT).hexdigest()


class Server:
    """A server of one file that records the requests.

    Attributes:
        cuts: for each request, the number of bytes after which the connection ends; later requests are not cut.
    """

    def __init__(self):
        self.content, self.ranges, self.status, self.type = CONTENT, True, 200, "application/zip"
        self.cuts: list[int] = []
        self.length = True
        self.seen: list[dict] = []
        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.httpd.handle_error = lambda *args: None  # clients end connections on purpose
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
                    self.end_headers()
                    return
                self.send_response(206 if start else server.status)
                if server.length:
                    self.send_header("Content-Length", str(len(body) - start))
                self.send_header("Content-Type", server.type)
                self.end_headers()
                cut = server.cuts.pop(0) if server.cuts else None
                self.wfile.write(body[start:] if cut is None else body[start : start + cut])

            def log_message(self, *args):
                pass

        return Handler


def serve():
    made = Server()
    yield made
    made.httpd.shutdown()
    made.httpd.server_close()


server, second = pytest.fixture(serve, name="server"), pytest.fixture(serve, name="second")


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(module, "PAUSE", 0.0)


@pytest.fixture
def target(tmp_path):
    return tmp_path / "downloads" / "file.zip"


def part(target, content=None):
    """Return the path of the unfinished file, and write its content if it is given."""
    path = target.with_name("file.zip.part")
    if content is not None:
        target.parent.mkdir()
        path.write_bytes(content)
    return path


def complete(target):
    """Return whether the whole file is in its folder, and no other file."""
    return target.read_bytes() == CONTENT and [path.name for path in target.parent.iterdir()] == ["file.zip"]


def test_a_file_is_fetched_once(server, target):
    assert download([server.url], target, MD5) == target
    assert complete(target) and len(server.seen) == 1
    download([server.url], target, MD5)
    assert len(server.seen) == 1, "the right file is not fetched again"


def test_a_cut_connection_is_resumed(server, target):
    server.cuts = [200_000] * 10
    download([server.url], target, MD5)
    assert complete(target) and len(server.seen) == 11, "a request that brings bytes resets the count of tries"
    assert [seen.get("Range") for seen in server.seen][:3] == [None, "bytes=200000-", "bytes=400000-"]


def test_a_later_call_resumes(server, target):
    server.cuts = [20_000] + [0] * module.TRIES
    with pytest.raises(DataError, match=f"the connection ended after 20000 bytes, {module.TRIES} times in a row"):
        download([server.url], target, MD5)
    assert part(target).read_bytes() == CONTENT[:20_000] and not target.exists()
    server.cuts = []
    download([server.url], target, MD5)
    assert complete(target) and server.seen[-1]["Range"] == "bytes=20000-"


def test_a_server_without_ranges_starts_over_until_the_next_source_is_tried(server, second, target):
    server.ranges, server.cuts = False, [2_000_000] * 20
    download([server.url, second.url], target, MD5)
    assert complete(target) and len(server.seen) == module.TRIES
    assert second.seen[0]["Range"] == "bytes=2000000-", "the next source adds its bytes, since the checksum decides"


def test_an_undeclared_length_is_verified_by_the_checksum(server, target):
    server.length, server.cuts = False, [2_000_000]
    with pytest.raises(DataError, match=r"no source gave it \(.* instead of "):
        download([server.url], target, MD5)
    download([server.url], target, MD5)
    assert complete(target)


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (503, module.TRIES), (None, 0)])
def test_the_next_source_is_tried_after_a_failure(server, second, target, status, requests, capsys):
    """Status None: the connection is refused."""
    server.status = status
    if status is None:
        server.httpd.server_close()
    download([server.url, second.url], target, MD5)
    error = capsys.readouterr().err
    assert complete(target) and (f"HTTP {status}" if status else "refused") in error and len(server.seen) == requests


@pytest.mark.parametrize("begun", [False, True])
def test_a_file_with_a_wrong_checksum_is_deleted(server, second, target, capsys, begun):
    """Begun: an unfinished file is resumed."""
    if begun:
        part(target, bytes(1000))
    server.content = bytes(len(CONTENT))
    with pytest.raises(DataError) as caught:
        download([server.url], target, MD5)
    found = hashlib.md5(bytes(len(CONTENT))).hexdigest()
    assert f"md5 {found} instead of {MD5[4:]}" in str(caught.value) and "\n" not in str(caught.value)
    assert list(target.parent.iterdir()) == []
    download([server.url, second.url], target, MD5)
    assert complete(target) and found in capsys.readouterr().err


def test_a_finished_part_is_only_verified(server, target):
    part(target, CONTENT)
    download([server.url], target, MD5)
    assert complete(target) and len(server.seen) == 1


def test_a_web_page_does_not_replace_an_unfinished_file(server, target):
    part(target, CONTENT[:1000])
    server.content, server.type, server.ranges = b"<html>log in</html>", "text/html; charset=utf-8", False
    with pytest.raises(DataError, match="sends a web page"):
        download([server.url], target, MD5)
    assert part(target).read_bytes() == CONTENT[:1000]


def test_a_wrong_file_in_the_place_is_not_changed(server, target):
    target.parent.mkdir()
    target.write_bytes(b"mine")
    with pytest.raises(DataError, match="is not the published file .*; delete it, or put the right one there"):
        download([server.url], target, MD5)
    assert target.read_bytes() == b"mine" and not server.seen


def test_too_little_room_is_reported_before_the_download(server, target, monkeypatch):
    usage = module.shutil.disk_usage(target.parents[1])
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    with pytest.raises(DataError, match=r"needs .* more, the disk has 1\.0 MB free"):
        download([server.url], target, MD5)
    target.parent.rmdir()
    part(target, CONTENT[:2_500_000])
    download([server.url], target, MD5)  # only the rest needs room
    assert complete(target)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_is_not_a_failure_of_the_source(server, second, target):
    target.parent.mkdir()
    part(target).symlink_to("/dev/full")
    with pytest.raises(DataError, match="the disk is full; free some space, and the same command resumes it"):
        download([server.url, second.url], target, MD5)
    assert not second.seen
