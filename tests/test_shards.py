"""Tar shards: read back as written, and refused where they are hostile."""

import io
import tarfile

import pytest
from PIL import Image

from mezzotint import files


def png(colour):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(buffer, format="PNG")
    return buffer.getvalue()


def shard(path, members, **changes):
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 12.5  # a fraction makes an extended header, as webdataset's writer does
            for key, value in changes.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_samples_come_back_in_order_with_their_parts(tmp_path):
    members = [("a/0001.jpg", b"x"), ("a/0001.txt", b"one"), ("a/0002.v1.TXT", b"two"), ("b/0002.jpg", b"y")]
    found = list(files.read_shard(shard(tmp_path / "s.tar", members)))
    assert found == [
        ("a/0001", {"jpg": b"x", "txt": b"one"}),
        ("a/0002", {"v1.txt": b"two"}),
        ("b/0002", {"jpg": b"y"}),
    ]


def test_a_picture_in_memory_is_read_as_one_on_the_disk(tmp_path):
    content = png("red")
    (tmp_path / "a.png").write_bytes(content)
    assert files.parse_image(content, "a").tobytes() == files.read_image(tmp_path / "a.png").tobytes()
    with pytest.raises(files.FileError, match=r"s\.tar:a: is damaged or no picture"):
        files.parse_image(b"\x89PNG\r\n\x1a\n" + b"x" * 60, "s.tar:a")


def test_links_and_devices_are_refused(tmp_path):
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
        path = shard(tmp_path / "s.tar", [("x.txt", b"")], type=kind, linkname="/etc/passwd")
        with pytest.raises(files.FileError, match="no plain file"):
            list(files.read_shard(path))


def test_large_members_and_headers_are_refused_before_they_are_read(tmp_path):
    path = shard(tmp_path / "s.tar", [("x.txt", b"1" * 5000)])
    with pytest.raises(files.FileError, match="5,000 bytes, at most 4,000"):
        list(files.read_shard(path, max_member=4000))
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 2**33
    (tmp_path / "h.tar").write_bytes(header.tobuf() + b"\0" * 2048)
    with pytest.raises(files.FileError):
        list(files.read_shard(tmp_path / "h.tar"))


def test_truncated_and_foreign_files_are_refused(tmp_path):
    whole = shard(tmp_path / "s.tar", [("x.jpg", b"1" * 3000), ("x.txt", b"t" * 3000)]).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:4000])
    (tmp_path / "zip.tar").write_bytes(b"PK\x03\x04" + b"\0" * 600)
    (tmp_path / "gz.tar").write_bytes(b"\x1f\x8b" + b"\0" * 600)
    for name, message in (("cut", r"data|truncated|damaged"), ("zip", "zip archive"), ("gz", "gzip archive")):
        with pytest.raises(files.FileError, match=message):
            list(files.read_shard(tmp_path / f"{name}.tar"))
