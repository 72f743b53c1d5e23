"""No proxy is asked for a loopback address, whatever the environment says of proxies."""

import urllib.request
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from experiments.runtimes.flower_env import child_environment, past_proxies, quieten
from experiments.runtimes.superlink import SuperLink

NOBODY = "http://127.0.0.1:9"
PROXIES = ("grpc_proxy", "https_proxy", "http_proxy", "all_proxy")
EXEMPT = ("no_proxy", "NO_PROXY", "no_grpc_proxy")


@pytest.fixture
def environment(monkeypatch):
    """Sets these variables, and no others of proxies."""

    def put(**given):
        for name in (*PROXIES, *map(str.upper, PROXIES), *EXEMPT):
            monkeypatch.setenv(name, "")  # so that it is as before after the test
            monkeypatch.delenv(name)
        for name, value in given.items():
            monkeypatch.setenv(name, value)

    return put


@pytest.fixture(scope="module")
def port():
    """Of a gRPC server on every loopback address."""
    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        found = server.add_insecure_port("0.0.0.0:0")
        server.start()
        yield found
        server.stop(None).wait()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost"])
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"no_proxy": "corp.example"},
        {"NO_PROXY": "corp.example"},
        {"no_proxy": "*"},
        {"no_grpc_proxy": "corp.example", "no_proxy": "127.0.0.1"},
    ],
)
def test_grpc_reaches_loopback_itself(environment, port, host, given):
    environment(**given, **dict.fromkeys(PROXIES, NOBODY))
    quieten()
    # A pool of its own: another test's connection would do otherwise.
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"{host}:{port}", options) as channel:
        grpc.channel_ready_future(channel).result(timeout=60)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
@pytest.mark.parametrize("given", [{}, {"no_proxy": "*"}, {"NO_PROXY": "corp.example"}])
def test_python_reaches_loopback_itself(environment, host, given):
    environment(**given, **{name.upper(): NOBODY for name in PROXIES})
    quieten()
    assert urllib.request.proxy_bypass(host)


OURS = "127.0.0.1,127.0.0.0/8,localhost,::1"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (OURS, OURS, OURS)),
        ({"no_proxy": "a.b, c"}, 3 * ("a.b,c," + OURS,)),
        ({"NO_PROXY": "a.b"}, 3 * ("a.b," + OURS,)),
        ({"no_proxy": "a", "NO_PROXY": "b"}, ("a," + OURS, "b," + OURS, "a," + OURS)),
        ({"no_proxy": "a", "no_grpc_proxy": "c"}, ("a," + OURS, "a," + OURS, "c," + OURS)),
        ({"no_proxy": "*"}, ("*", "*", "*," + OURS)),
        ({"no_proxy": "localhost"}, 3 * ("localhost,127.0.0.1,127.0.0.0/8,::1",)),
    ],
)
def test_what_the_user_exempts_stays_so(environment, given, expected):
    environment(**given)
    assert past_proxies(given) == dict(zip(EXEMPT, expected, strict=True))
    found = child_environment(given)
    assert tuple(found[name] for name in EXEMPT) == expected
    assert past_proxies(found) == {name: found[name] for name in EXEMPT}  # once is enough


@pytest.mark.parametrize("name", ["grpc_proxy", "https_proxy", "http_proxy", None])
def test_a_superlink_that_does_not_answer_is_said_to_be_behind_the_proxy(
    environment, tmp_path, monkeypatch, name
):
    environment(**({name: NOBODY} if name else {}))
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    text = '[superlink.mine]\naddress = "10.0.0.1:9000"\n'
    (tmp_path / "config.toml").write_text(text)
    answer = SuperLinkSays("Connection to the SuperLink is unavailable.")
    monkeypatch.setattr("experiments.runtimes.superlink.subprocess.run", answer)
    with pytest.raises(ValueError, match=r"no SuperLink answers at 10\.0\.0\.1:9000") as error:
        SuperLink.find("mine").nodes_online()
    assert ("must not be asked" in str(error.value)) == (name is not None)
    assert f"if {name} must" in str(error.value) or name is None


class SuperLinkSays:
    """Flower's command, which fails with a message."""

    def __init__(self, text):
        self.stdout, self.stderr = "", text

    def __call__(self, *_, **__):
        return self
