"""The command itself: what it writes where, for which flags, and what it says of those it cannot follow."""

import re

import pytest
import torch
from absl import app, flags
from absl.testing import flagsaver

from tests.generate import tiny_model
from tools.generate import generate

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model.write(tmp_path_factory.mktemp("gguf") / "m.gguf", "llama", seed=5)


@pytest.fixture
def run(model, capsys):
    """run(flags...) → (stdout, stderr, what the process would exit with)."""
    threads = torch.get_num_threads()

    def command(*arguments):
        with flagsaver.flagsaver():
            exited = None
            try:
                rest = flags.FLAGS(["generate", f"--model={model}", "--device=cpu", "--max_tokens=5", *arguments])
                generate.main(rest)
            except SystemExit as error:
                exited = error.code
        captured = capsys.readouterr()
        return captured.out, captured.err, exited

    yield command
    torch.set_num_threads(threads)


def test_only_the_text_goes_to_stdout(run):
    out, err, exited = run("--prompt=the quick")
    assert exited is None
    assert out.endswith("\n") and "tokens/s" not in out and "loading" not in out
    assert "loading m.gguf on cpu" in err and err.count("tokens/s") == 2


def test_a_batch_is_what_each_prompt_gives_alone(run):
    prompts = ["--prompt=the", "--prompt=brown fox, of more tokens", "--prompt=x"]
    together = run(*prompts)[0]
    assert together == "".join(run(prompt)[0] for prompt in prompts)


def test_chat_is_the_template_around_the_prompt(run):
    assert run("--chat", "--prompt=hi")[0] == run("--prompt=<|user|>hi<|end|>")[0] != run("--prompt=hi")[0]


def test_seed(run):
    sampled = ["--prompt=the", "--temperature=2", "--top_k=0", "--top_p=1"]
    texts = [run(*sampled, f"--seed={seed}")[0] for seed in (1, 2, 3, 1)]
    assert texts[0] == texts[3] and len(set(texts)) > 1


@pytest.mark.parametrize("filters", [["--temperature=1e-30"], ["--temperature=9", "--top_k=1"], ["--top_p=0"]])
def test_sampling_without_a_choice_is_greedy(run, filters):
    temperature = [] if filters[0].startswith("--temperature") else ["--temperature=1"]
    assert run("--prompt=the", *temperature, *filters)[0] == run("--prompt=the")[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model=/nonexistent/m.gguf"], "generate: /nonexistent/m.gguf: there is no such file"),
        (["--model=."], "generate: .*: there is no such file"),
        (["--prompt="], "generate: a prompt has no tokens"),
        (["--prompt=\udcff"], "generate: a prompt is not UTF-8"),
        (["--max_tokens=1000"], "generate: a prompt of .* exceed the model's context of 256 tokens"),
        pytest.param(["--device=cuda"], "generate: --device=cuda, but torch sees no GPU", marks=NO_GPU),
    ],
)
def test_one_line_says_what_is_wrong(run, arguments, message):
    out, _, exited = run(*arguments)
    assert out == ""
    assert re.fullmatch(message, exited)


def test_truncated_model(run, model, tmp_path):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(model.read_bytes()[:-1000])
    out, _, exited = run(f"--model={cut}")
    assert out == "" and exited.startswith(f"generate: {cut}: tensor ") and "but the file ends at" in exited


@pytest.mark.parametrize(
    "argument", ["--temperature=-1", "--temperature=nan", "--top_p=nan", "--top_p=1.1", "--top_k=-1", "--max_tokens=0",
                 "--seed=99999999999999999999", "--device=tpu", "--flag_of_no_one"],
)  # fmt: skip
def test_flags_out_of_range(run, argument):
    with pytest.raises(flags.Error):
        run("--prompt=the", argument)


def test_an_argument_that_is_no_flag(run):
    with pytest.raises(app.UsageError, match="'the' belongs to no flag"):
        run("the")
