import io
import zipfile

import pytest

from latent_prior.evaluation.features.downloads import download


@pytest.fixture(scope="module")
def archive():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a", "some content")
    return buffer.getvalue()


def test_a_file_arrives_whole(serve, archive, tmp_path):
    target = tmp_path / "new" / "a.zip"
    download(serve({"a.zip": (archive, len(archive))}) + "a.zip", target, "stop")
    assert target.read_bytes() == archive
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("cut", [0, 1, 60])
def test_half_a_file_is_no_file(serve, archive, tmp_path, cut):
    target = tmp_path / "a.zip"
    with pytest.raises(
        ValueError, match=rf"broke off after {cut} of {len(archive)} bytes: .* or stop"
    ):
        download(serve({"a.zip": (archive[:cut], len(archive))}) + "a.zip", target, "stop")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_download_leaves_an_older_file_alone(archive, tmp_path):
    target = tmp_path / "a.zip"
    target.write_bytes(archive)
    with pytest.raises(ValueError, match="could not be downloaded"):
        download("http://127.0.0.1:9/a.zip", target, "stop")
    assert target.read_bytes() == archive


def test_a_page_instead_of_the_file_is_not_kept(serve, tmp_path):
    page = b"<html>please log in</html>"
    with pytest.raises(ValueError, match="is not the file that belongs there: connect"):
        download(serve({"a.zip": (page, len(page))}) + "a.zip", tmp_path / "a.zip", "stop")
    assert list(tmp_path.iterdir()) == []


def test_what_the_server_lacks_can_be_told_from_no_network(serve, tmp_path):
    with pytest.raises(FileNotFoundError):
        download(serve({}) + "a.zip", tmp_path / "a.zip", "stop")
    assert list(tmp_path.iterdir()) == []
