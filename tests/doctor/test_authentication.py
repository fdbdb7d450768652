"""Authentication: Ray's variables and files, read as Ray reads them."""

import pytest

from semantica.doctor.authentication import check_authentication, find_token, host_of, is_loopback

TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def home(tmp_path):
    """A home folder with a token that only its owner reads."""
    path = tmp_path / ".ray" / "auth_token"
    path.parent.mkdir()
    path.write_text(TOKEN + "\n")
    path.chmod(0o600)
    return tmp_path


@pytest.mark.parametrize(
    ("address", "mode", "with_token", "status"),
    [
        (None, "", False, "OK"),
        (None, "disabled", True, "OK"),
        ("127.0.0.1:6379", "", False, "OK"),
        ("127.0.0.1:6379", "disabled", True, "OK"),
        ("127.0.0.1:6379", "", True, "WARN"),  # submitting would be refused
        ("127.0.0.1:6379", "token", False, "FAIL"),
        ("10.0.0.7:6379", "", True, "FAIL"),
        ("10.0.0.7:6379", "disabled", True, "FAIL"),
        ("10.0.0.7:6379", "token", False, "FAIL"),
        ("10.0.0.7:6379", "token", True, "OK"),
        ("10.0.0.7:6379", "TOKEN", True, "OK"),
        ("http://head.example:8265", "token", True, "WARN"),  # unencrypted
        ("https://head.example", "token", True, "OK"),
        ("10.0.0.7:6379", "tokn", True, "FAIL"),
    ],
)
def test_tokens_are_asked_for_where_others_reach_the_cluster(home, tmp_path, address, mode, with_token, status):
    variables = {"RAY_AUTH_MODE": mode, "HOME": str(home if with_token else tmp_path / "nobody")}
    found = list(check_authentication(address, variables))
    assert found[0].name == "authentication.mode"
    assert found[0].status == status
    assert len(found) == 1 + with_token
    assert all(TOKEN not in finding.found + finding.remedy for finding in found)


def test_a_token_that_others_can_read_is_a_warning(home):
    path = home / ".ray" / "auth_token"
    path.chmod(0o644)
    finding = list(check_authentication(None, {"HOME": str(home)}))[-1]
    assert (finding.name, finding.status) == ("authentication.token", "WARN")
    assert finding.remedy == f"chmod 600 {path}"


def test_the_token_is_looked_for_in_rays_order(home, tmp_path):
    other = tmp_path / "other"
    other.write_text("of-a-file")
    variables = {"HOME": str(home)}
    assert find_token(variables) == (TOKEN, str(home / ".ray" / "auth_token"))
    assert find_token(variables | {"RAY_AUTH_TOKEN_PATH": str(other)}) == ("of-a-file", str(other))
    assert find_token(variables | {"RAY_AUTH_TOKEN_PATH": str(other), "RAY_AUTH_TOKEN": "given"}) == ("given", "RAY_AUTH_TOKEN")
    assert find_token(variables | {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")})[0] is None  # Ray does not fall back either


def test_hosts_of_every_form_of_address():
    hosts = [host_of(a) for a in ("10.0.0.7:6379", "http://head:8265", "ray://head:10001", "[::1]:6379", "auto", "local")]
    assert hosts == ["10.0.0.7", "head", "head", "::1", "127.0.0.1", "127.0.0.1"]
    assert [is_loopback(a) for a in ("localhost:1", "127.3.0.1:1", "[::1]:1", "10.0.0.7:1", "head:1", "auto")] == [
        True, True, True, False, False, True,
    ]  # fmt: skip
