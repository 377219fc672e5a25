"""A C++ server links the sampling family alone: it runs, answers what the Python package draws, and needs neither."""

import os
import pathlib
import socket
import struct
import subprocess

import pytest
import torch


@pytest.fixture(scope="module")
def binary():
    path = pathlib.Path(os.environ.get("TOKEN_SERVER", pathlib.Path(__file__).with_name("token_server")))
    if not path.exists():
        pytest.skip(f"{path} is not built: ./bazelw test //tests/embed/... builds it, TOKEN_SERVER names another")
    return path


@pytest.fixture(scope="module")
def connect(binary):
    server = subprocess.Popen([binary], stdout=subprocess.PIPE, text=True)
    try:
        line = server.stdout.readline()
        assert line.startswith("listening on 127.0.0.1:"), line
        port = int(line.rsplit(":", 1)[1])
        yield lambda: socket.create_connection(("127.0.0.1", port), timeout=30)
    finally:
        server.kill()
        server.wait()


def receive(client, size):
    data = b""
    while len(data) < size:
        more = client.recv(size - len(data))
        assert more, "the server closed the connection"
        data += more
    return data


def ask(client, rows, is_logits=False, top_k=0, top_p=1.0, temperature=1.0, seed=(0, 0)):
    header = struct.pack("=IIIiffqq", is_logits, *rows.shape, top_k, top_p, temperature, *seed)
    client.sendall(header + rows.contiguous().numpy().tobytes())
    (failed,) = struct.unpack("=i", receive(client, 4))
    if failed:
        raise ValueError(receive(client, failed).decode())
    num_rows = rows.shape[0]
    return torch.tensor(struct.unpack(f"={num_rows}i", receive(client, 4 * num_rows)), dtype=torch.int32)


def test_draws_what_the_package_draws(connect):
    from sgl_kernel import _sampling

    probs = torch.softmax(torch.randn(5, 32000, generator=torch.Generator().manual_seed(1)), -1)
    with connect() as client:
        for seed in range(3):
            ids = ask(client, probs, top_k=50, top_p=0.9, seed=(seed, 7))
            expected = torch.empty(5, dtype=torch.int32)
            gen = torch.tensor([seed, 7])
            _sampling.top_k_top_p_sampling_from_probs(probs, expected, None, None, 50.0, None, 0.9, True, gen)
            assert torch.equal(ids, expected)


def test_logits(connect):
    logits = torch.randn(4, 1000, generator=torch.Generator().manual_seed(2))
    with connect() as client:
        assert torch.equal(ask(client, logits, is_logits=True, temperature=0.0).long(), logits.argmax(-1))
        assert torch.equal(ask(client, logits, is_logits=True, top_k=1, temperature=0.7).long(), logits.argmax(-1))
        drawn = ask(client, logits, is_logits=True, top_k=5, seed=(3, 4)).long()
        assert (logits.topk(5).indices == drawn[:, None]).any(-1).all()


def test_answers_bad_requests(connect):
    with connect() as client:
        with pytest.raises(ValueError, match="top_p_val is nan"):
            ask(client, torch.rand(1, 10), top_p=float("nan"))
        with pytest.raises(ValueError, match=r"probs.shape\[-1\] is 0"):
            ask(client, torch.rand(1, 0))
        assert ask(client, torch.rand(0, 10)).numel() == 0
        client.sendall(struct.pack("=IIIiffqq", 0, 2**31, 2**31, 0, 1.0, 1.0, 0, 0))
        (size,) = struct.unpack("=i", receive(client, 4))
        assert b"expected at most" in receive(client, size)
    with connect() as client:  # it still serves
        assert ask(client, torch.ones(1, 1)).tolist() == [0]


def test_links_neither_python_nor_torch(binary):
    lines = subprocess.run(["ldd", binary], capture_output=True, text=True, check=True).stdout.lower().splitlines()
    libraries = " ".join(line.split()[0] for line in lines)  # without the addresses
    assert "libc.so" in libraries
    for name in ("python", "torch", "c10", "libcuda"):
        assert name not in libraries
