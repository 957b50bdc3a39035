"""Images that are no files of their own are read where they are, and only then."""

from __future__ import annotations

import base64
import io
import json
import pickle  # noqa: S403 - only to see that a reference survives the way to a worker process
import tarfile

import pytest

from ccrk.data.references import Base64Line, DatasetCell, ImageFolder, ImageReference, TarMember
from ccrk.data.report import SkipReport

BYTES = bytes(range(256))


@pytest.fixture
def member(tmp_path) -> TarMember:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in (("1.txt", b"text"), ("1.jpg", BYTES)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with tarfile.open(tmp_path / "a.tar") as tar:
        return TarMember(str(tmp_path / "a.tar"), tar.getmember("1.jpg").offset_data, len(BYTES))


@pytest.fixture
def line(tmp_path) -> Base64Line:
    first = json.dumps({"text": "é"}, ensure_ascii=False).encode() + b"\n"
    second = json.dumps({"photo": base64.b64encode(BYTES).decode()}).encode() + b"\n"
    (tmp_path / "a.jsonl").write_bytes(first + second + first)
    return Base64Line(str(tmp_path / "a.jsonl"), len(first), len(second), "photo")


@pytest.mark.parametrize("kind", ["member", "line"])
def test_bytes_come_back(request, kind):
    reference = request.getfixturevalue(kind)
    assert isinstance(reference, ImageReference)
    assert reference.read() == BYTES
    copy = pickle.loads(pickle.dumps(reference))  # noqa: S301
    assert copy == reference and hash(copy) == hash(reference) and len(pickle.dumps(reference)) < 400


def test_a_file_that_has_changed(member, line):
    with pytest.raises(ValueError, match="ends 7 bytes before the image"):
        TarMember(member.path, 10240 - 5, 12).read()
    with pytest.raises(FileNotFoundError):
        TarMember("gone.tar", 0, 1).read()
    for wrong in (
        Base64Line(line.path, line.offset, line.length, "image"),
        Base64Line(line.path, line.offset + 1, line.length, "photo"),
        Base64Line(line.path, 0, line.offset, "photo"),
    ):
        with pytest.raises(ValueError, match="no object with an image under .*; has the file changed"):
            wrong.read()


@pytest.mark.parametrize(("text", "fine"), [("AAAA\\nAAAA", True), ("AAA", False), ("A*AA", False)])
def test_only_base64_is_read_as_such(tmp_path, text, fine):
    data = f'{{"image": "{text}"}}'
    (tmp_path / "a").write_text(data)
    reference = Base64Line(str(tmp_path / "a"), 0, len(data), "image")
    if fine:
        assert reference.read() == b"\0" * 6
    else:
        with pytest.raises(ValueError, match="'image' is not base64"):
            reference.read()


def test_cells_of_a_data_set(tmp_path):
    (tmp_path / "b.jpg").write_bytes(b"from a file")
    cells = [b"bytes", {"bytes": b"in a dict", "path": "x"}, {"bytes": None, "path": str(tmp_path / "b.jpg")}, None]
    table = [{"image": cell} for cell in cells]
    assert [DatasetCell(table, row, "image").read() for row in range(3)] == [b"bytes", b"in a dict", b"from a file"]
    with pytest.raises(ValueError, match="row 3 has no image in its column 'image'"):
        DatasetCell(table, 3, "image").read()


def test_where_an_image_is_looked_for(tmp_path):
    for name in ("a.jpg", "sub/a.jpg", "sub/b.jpg", "c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    folder, report = ImageFolder(tmp_path), SkipReport()
    assert folder.find("a.jpg", report) == str(tmp_path / "a.jpg")
    assert folder.find("a.jpg", report, ["none", "sub"]) == str(tmp_path / "sub" / "a.jpg")
    assert folder.find("sub/../a.jpg", report) == str(tmp_path / "a.jpg")
    assert folder.find("c.jpg", report, aliases=["c.png"]) == str(tmp_path / "c.png")
    assert not report
    assert folder.find("sub", report) is None and report == {"image file missing": 1}
    for outside in ("..", "../a.jpg", "/etc/hosts", f"{tmp_path}-2/a.jpg", "."):
        assert folder.find(outside, report) is None
    assert report["image path leaves the image folder"] == 5
    assert ImageFolder("/").find("/etc/hosts", report, ["a"]) == "/etc/hosts", "as the user says"
    assert ImageFolder(tmp_path, check=False).find("gone.jpg", report, ["sub"]) == str(tmp_path / "sub" / "gone.jpg")
