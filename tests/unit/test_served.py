"""The search on a server, against a server that is strict, and a model that is known by heart.

What must come out is reckoned by `Plainly`: token by token from the same model and the same random
numbers, with no server between.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selfcal.methods.parts import search as searching
from selfcal.methods.parts import serving
from selfcal.miniworld.models import build_processor, build_tokenizer
from selfcal.policy import ModelError, prompt_text
from selfcal.rationale import sentence_end
from selfcal.recipe import Recipe, Server
from selfcal.search import Found, Sampling, SearchLimits, respond, search, served
from selfcal.search.jobs import Ask, Job, Sentence
from selfcal.search.probe import Wants, check_server, find_model
from selfcal.search.served import ServedEngine
from selfcal.search.server import Card, Connection, ServerError
from selfcal.search.stacked import Adapters
from selfcal.stage import Stage, Work
from selfcal.store import StageDir
from selfcal.types import Candidate, Drop, Sample
from strict_vllm import Logprobs, StrictServer

WORDS = [" The", " red", " bar", " is", " 3", ".", "\n", "Answer", ":", " no", "?"]
LIMITS = SearchLimits(3, 2, "stochastic", 4, 9, Sampling())


@pytest.fixture(scope="module")
def processor() -> Any:
    return build_processor(build_tokenizer())


class Toy:
    """A model whose next token hangs on the question and the last letters before it.

    On letters, not on tokens: a server reads text anew, and may find other tokens in it.
    """

    def __init__(self, processor: Any, words: Iterable[str] = WORDS, end: float = 0.5) -> None:
        self.tokenizer = processor.tokenizer
        self.ids = [i for w in words for i in self._ids(w)]
        self.end, self.known = end, dict[Any, Logprobs]()

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def __call__(self, prompt: str, ids: tuple[int, ...]) -> Logprobs:
        question, _, said = prompt.rpartition("<|assistant|>")
        key = (question, said, ids)
        if key not in self.known:
            before = (said + self.tokenizer.decode(list(ids)))[-6:]
            rng = np.random.default_rng([zlib.crc32(t.encode()) for t in (question, before)])
            scores = np.full(len(self.tokenizer), -40.0)
            scores[self.ids] = rng.normal(size=len(self.ids)) * 1.5
            scores[self.tokenizer.eos_token_id] = self.end
            self.known[key] = scores - np.log(np.exp(scores).sum())
        return self.known[key]


@dataclass
class Plainly:
    """Runs jobs with no engine: a place is a prompt and the tokens so far."""

    processor: Any
    model: Any
    limit: int

    def run(self, samples: Iterable[Sample], start: Callable[..., Job[Any]]) -> Iterator[Any]:
        for sample in samples:
            job = start(sample, (prompt_text(self.processor, sample), ()))
            found = None
            while True:
                try:
                    asks = next(job) if found is None else job.send(found)
                except StopIteration as end:
                    yield end.value
                    break
                found = [[self.say(*ask.place, row) for row in ask.uniforms] for ask in asks]

    def say(self, prompt: str, before: tuple[int, ...], numbers: Any) -> Sentence:
        own: tuple[int, ...] = ()
        logprob = 0.0
        for number in numbers[: self.limit]:
            logprobs = self.model(prompt, before + own)
            token = int((np.exp(logprobs).cumsum() <= number).sum())
            ended = token == self.processor.tokenizer.eos_token_id
            if own and not ended and sentence_end(self.text((*own, token))) is not None:
                break
            logprob += float(logprobs[token])
            if ended:
                return Sentence(None, self.text(own), logprob, (*own, token), True)
            own = (*own, token)
        place: Any = (prompt, before + own)
        return Sentence(place, self.text(own), logprob, own, False)

    def text(self, ids: tuple[int, ...]) -> str:
        return str(self.processor.tokenizer.decode(list(ids)))


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    from PIL import Image

    path = tmp_path_factory.mktemp("images") / "a.png"
    Image.new("RGB", (8, 8), "red").save(path)
    return [Sample(f"s{i}", str(path), f"How many {i} bars?", "3") for i in range(4)]


@pytest.fixture
def book(monkeypatch: pytest.MonkeyPatch) -> dict[int, Any]:
    """The random numbers behind every seed, as they were asked for."""
    made: dict[int, Any] = {}
    plain = served.seed

    def noted(uniforms: Any, tokens: int) -> int:
        made[plain(uniforms, tokens)] = uniforms[:, tokens:].copy()
        return plain(uniforms, tokens)

    monkeypatch.setattr(served, "seed", noted)
    return made


@dataclass
class Setting:
    """A server in work, and an engine on it."""

    server: StrictServer
    connection: Connection
    engine: ServedEngine


@pytest.fixture
def on(processor: Any) -> Iterator[Callable[..., Setting]]:
    """Starts servers and engines on them."""
    with ExitStack() as stack:

        def start(
            sampling: Sampling = LIMITS.sampling,
            tokens: int = LIMITS.sentence_tokens,
            whole: bool = False,
            concurrency: int = 4,
            trims: bool = False,
            **more: Any,
        ) -> Setting:
            more.setdefault("model", Toy(processor))
            server = stack.enter_context(StrictServer(processor, **more).running())
            settings = Server(base_url=server.url, api_key_env="OPENAI_API_KEY", retries=2,
                              concurrency=concurrency, timeout=20)  # fmt: skip
            connection = stack.enter_context(Connection(settings))
            model = served.Served(server.name, processor, server.context, trims)
            return Setting(
                server, connection, ServedEngine(connection, model, sampling, tokens, whole)
            )

        yield start


def found(
    setting: Setting, samples: Iterable[Sample], limits: SearchLimits = LIMITS
) -> list[Found]:
    return list(search(None, samples, limits, "0", engine=setting.engine))


def close(one: Found, other: Found) -> bool:
    """Whether two searches found the same; log-probabilities to rounding."""

    def rounded(f: Found) -> Any:
        nodes = [replace(n, logprob=round(n.logprob, 6)) for n in f.nodes]
        texts = [(c.text, c.sentences, c.token_counts, c.finished) for c in f.candidates]
        return nodes, texts, f.drops

    return bool(rounded(one) == rounded(other))


# --- trees ----------------------------------------------------------------------------------


def test_trees_equal_those_reckoned_plainly(
    on: Any, processor: Any, samples: list[Sample], book: dict[int, Any]
) -> None:
    toy = Toy(processor)
    setting = on(model=toy, numbers=book)
    trees = found(setting, samples)
    plain: Any = Plainly(processor, toy, LIMITS.sentence_tokens)
    expected = list(search(None, samples, LIMITS, "0", engine=plain))
    assert all(map(close, trees, expected))
    assert sum(len(f.candidates) for f in expected) > len(samples)
    texts = [n.text for f in expected for n in f.nodes]
    assert any(t.endswith("\n") for t in texts)
    assert setting.engine.counts.continued > 0


@pytest.mark.parametrize("keep", ["likelihood", "top_bottom", "diverse"])
def test_every_rule_of_keeping_sees_the_same_paths(
    on: Any, processor: Any, samples: list[Sample], book: dict[int, Any], keep: str
) -> None:
    toy, limits = Toy(processor), replace(LIMITS, keep=keep)
    plain: Any = Plainly(processor, toy, LIMITS.sentence_tokens)
    expected = list(search(None, samples[:2], limits, "0", engine=plain))
    assert all(map(close, found(on(model=toy, numbers=book), samples[:2], limits), expected))


def test_all_draws_are_accounted_for_and_sentences_are_single(
    on: Any, samples: list[Sample]
) -> None:
    for tree in found(on(), samples):
        first = [n for n in tree.nodes if n.parent == -1]
        assert sum(n.draws for n in first) == LIMITS.candidates * LIMITS.branch
        for node in tree.nodes:
            assert sentence_end(node.text) is None
            assert 0 < node.tokens <= LIMITS.sentence_tokens


def test_neither_order_nor_concurrency_changes_what_is_found(
    on: Any, samples: list[Sample]
) -> None:
    one, many = on(concurrency=1), on(concurrency=16)
    alone, together = found(one, samples), found(many, samples)
    assert all(map(close, alone, together))
    assert all(map(close, alone, found(on(), samples[::-1])[::-1]))
    assert one.server.most == 1 and 1 < many.server.most <= 16


def test_a_stream_of_samples_is_not_read_far_ahead(on: Any, samples: list[Sample]) -> None:
    setting = on(concurrency=2)
    read: list[str] = []

    def endless() -> Iterator[Sample]:
        for i in range(10_000):
            read.append(str(i))
            yield replace(samples[i % 4], id=str(i))

    results = search(None, endless(), LIMITS, "0", engine=setting.engine)
    for _ in range(3):
        next(results)
    results.close()  # type: ignore[attr-defined]
    assert len(read) <= 3 + 4 * 2
    assert found(setting, samples[:1])


def test_greedy_draws_are_asked_for_once(on: Any, samples: list[Sample]) -> None:
    setting = on(Sampling(temperature=0))
    limits = replace(LIMITS, sampling=Sampling(temperature=0), keep="likelihood")
    (tree,) = found(setting, samples[:1], limits)
    assert {n.draws for n in tree.nodes} == {6}
    assert all("n" not in body and "seed" not in body for body in setting.server.chats)


def test_greedy_responses_are_the_most_likely_tokens(
    on: Any, processor: Any, samples: list[Sample]
) -> None:
    toy = Toy(processor)
    setting = on(Sampling(temperature=0), 20, True, model=toy)
    said = list(respond(None, samples, 20, engine=setting.engine))
    for sample, text in zip(samples, said, strict=True):
        ids: tuple[int, ...] = ()
        for _ in range(20):
            token = int(toy(prompt_text(processor, sample), ids).argmax())
            if token == processor.tokenizer.eos_token_id:
                break
            ids = (*ids, token)
        assert text == processor.tokenizer.decode(ids).strip()
    assert len(setting.server.chats) == len(samples)


def test_settings_of_sampling_reach_the_server(on: Any, samples: list[Sample]) -> None:
    setting = on(Sampling(0.7, 0.9, 5, 1.2))
    found(setting, samples[:1])
    for body in setting.server.chats:
        assert (body["temperature"], body["top_p"], body["top_k"]) == (0.7, 0.9, 5)
        assert body["repetition_penalty"] == 1.2


def test_images_stand_where_the_question_has_them(on: Any, samples: list[Sample]) -> None:
    setting = on(images=2)
    image = samples[0].image
    question = "Is <image> the same as <image>?"
    found(setting, [Sample("two", image, question, "yes", more_images=(image,))])
    parts = setting.server.chats[0]["messages"][0]["content"]
    assert [p["type"] for p in parts] == ["text", "image_url", "text", "image_url", "text"]
    assert parts[1]["uuid"] == parts[3]["uuid"]


def scripted(processor: Any, *tokens: str) -> Any:
    """A model that says these tokens and nothing else, wherever it is taken up."""
    tokenizer = processor.tokenizer
    ids = [i for t in tokens for i in tokenizer(t, add_special_tokens=False)["input_ids"]]
    ids.append(tokenizer.eos_token_id)

    def model(prompt: str, own: tuple[int, ...]) -> Logprobs:
        said = prompt.rpartition("<|assistant|>")[2]
        at = len(tokenizer(said, add_special_tokens=False)["input_ids"]) + len(own)
        logprobs = np.full(len(tokenizer), -50.0)
        logprobs[ids[min(at, len(ids) - 1)]] = -0.25
        return logprobs

    return model


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("It is e.g. red. The bar is 3.", ["It is e.g. red.", " The bar is 3."]),
        ("It is 3.\nAnswer: 3.", ["It is 3.\n", "Answer: 3."]),
        ("It is red! The bar is 3.", ["It is red!", " The bar is 3."]),
        ("Is it 3? The bar is.\n\nAnswer: 3", ["Is it 3?", " The bar is.\n\n", "Answer: 3"]),
    ],
)
def test_a_stop_is_an_end_only_where_the_text_says_so(
    on: Any, processor: Any, samples: list[Sample], text: str, sentences: list[str]
) -> None:
    limits = replace(LIMITS, candidates=1, branch=1, sentence_tokens=40)
    setting = on(tokens=40, model=scripted(processor, text))
    (tree,) = found(setting, samples[:1], limits)
    assert [n.text for n in tree.nodes] == sentences
    # each token has -0.25, the end of the response included
    tokens = [len(processor.tokenizer(s, add_special_tokens=False)["input_ids"]) for s in sentences]
    tokens[-1] += 1
    assert [n.logprob for n in tree.nodes] == pytest.approx([-0.25 * t for t in tokens])


def test_a_template_that_drops_white_space_costs_no_line(
    on: Any, processor: Any, samples: list[Sample]
) -> None:
    limits = replace(LIMITS, candidates=1, branch=1, sentence_tokens=40)
    setting = on(tokens=40, trims=True, model=scripted(processor, "It is 3.\nAnswer: 3"))
    (tree,) = found(setting, samples[:1], limits)
    assert [n.text for n in tree.nodes] == ["It is 3.", "\nAnswer: 3"]
    asked = [b["messages"][1]["content"] for b in setting.server.chats if len(b["messages"]) > 1]
    assert asked and all(a == a.rstrip() for a in asked)


def retold(processor: Any, prompt: str, turn: str, end: str = "<|end|>") -> Any:
    """The processor with a template whose prompt and whose turn of an assistant begin so."""
    made = copy.copy(processor)
    made.chat_template = (
        "{%- for m in messages -%}"
        f"{{{{ '<|user|>' if m['role'] == 'user' else {turn!r} }}}}"
        "{%- if m['content'] is string -%}{{ m['content'] }}{%- else -%}"
        "{%- for p in m['content'] -%}{{ '<image>' if p['type'] == 'image' else p['text'] }}"
        f"{{%- endfor -%}}{{%- endif -%}}{{{{ {end!r} }}}}{{%- endfor -%}}"
        f"{{%- if add_generation_prompt -%}}{{{{ {prompt!r} }}}}{{%- endif -%}}"
    )
    return made


@pytest.mark.parametrize(
    ("prompt", "turn"),
    [("<|assistant|>\n", "<|assistant|>"), ("<|assistant|><think>\n", "<|assistant|>")],
)
def test_what_only_the_prompt_writes_is_said_again_where_a_turn_goes_on(
    processor: Any, samples: list[Sample], book: dict[int, Any], prompt: str, turn: str
) -> None:
    own, toy = retold(processor, prompt, turn), Toy(processor)
    with StrictServer(own, toy, numbers=book).running() as server:
        settings = Server(base_url=server.url, concurrency=4)
        with Connection(settings) as connection:
            model = check_server(connection, connection.models()[0], own, Wants())
            engine = ServedEngine(connection, model, LIMITS.sampling, LIMITS.sentence_tokens)
            trees = list(search(None, samples[:2], LIMITS, "0", engine=engine))
    plain: Any = Plainly(own, toy, LIMITS.sentence_tokens)
    assert all(map(close, trees, search(None, samples[:2], LIMITS, "0", engine=plain)))
    assert any(n.parent >= 0 for tree in trees for n in tree.nodes)


def test_a_space_that_the_turn_writes_is_not_said_twice(on: Any, processor: Any) -> None:
    own = retold(processor, "Assistant:", "Assistant: ")
    setting = on()
    setting.server.processor = own
    model = check(setting, own)
    assert model.continued(" The bar") == "The bar"
    # a tokenizer of the SentencePiece kind leaves the space out itself
    assert model.continued("The bar") == "The bar"


def test_a_template_whose_turns_begin_otherwise_than_its_prompt_is_refused(
    on: Any, processor: Any
) -> None:
    own = retold(processor, "<|assistant|>\n", "<|assistant|> \n")
    with pytest.raises(ModelError, match=r"prompts end in .*stands after .*policy\.chat_template"):
        check(on(), own)


# --- what goes wrong ------------------------------------------------------------------------


def test_what_may_pass_is_tried_again(on: Any, samples: list[Sample]) -> None:
    status = {2: 503, 4: 429}
    shaky = on(fails=status.get)
    assert all(map(close, found(shaky, samples[:2]), found(on(), samples[:2])))


def test_a_prompt_that_is_too_long_names_its_sample(on: Any, samples: list[Sample]) -> None:
    with pytest.raises(ServerError, match=r"sample s0: .*status 400.*maximum context length") as e:
        found(on(context=12), samples[:1])
    assert e.value.status == 400


def test_a_draw_that_the_context_cuts_short_names_its_sample_and_the_flag(
    on: Any, processor: Any, samples: list[Sample]
) -> None:
    tokens = len(processor.tokenizer(prompt_text(processor, samples[0]))["input_ids"]) + 8
    said = scripted(processor, " The" * 40)
    with pytest.raises(ServerError, match=r"sample s0: .*after 5 of 9 tokens.*--max-model-len"):
        found(on(model=said, context=tokens + 5), samples[:1])


def test_a_lost_server_keeps_what_was_found_before(on: Any, samples: list[Sample]) -> None:
    setting = on(concurrency=1, fails=lambda n: 500 if n > 12 else None)
    before: list[Found] = []
    with pytest.raises(ServerError, match=r"status 500 .*look at the server's log"):
        before += search(None, samples, LIMITS, "0", engine=setting.engine)
    results = search(None, samples, LIMITS, "0", engine=on(concurrency=1).engine)
    assert before and all(map(close, before, results))


def test_no_server_is_an_error_with_the_way_out(on: Any, samples: list[Sample]) -> None:
    settings = Server(base_url="http://127.0.0.1:9/v1", retries=0)
    with Connection(settings) as connection, pytest.raises(ServerError, match="no connection"):
        connection.models()


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://a/v1", "http://"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ServerError, match=r"policy\.server\.base_url"):
        Connection(Server(base_url=url))


def test_the_key_is_never_shown(on: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "injected")
    setting = on(fails=lambda n: 401)
    with pytest.raises(ServerError, match=r"status 401 .*\*\*\*.*\$OPENAI_API_KEY") as error:
        setting.connection.ask({"model": "served", "messages": [{"role": "user", "content": "x"}]}
                               ).result()  # fmt: skip
    assert "injected" not in str(error.value)


# --- the probe ------------------------------------------------------------------------------


def check(setting: Setting, processor: Any, **wants: Any) -> Any:
    (card, *_) = setting.connection.models()
    return check_server(setting.connection, card, processor, Wants(**wants))


@pytest.mark.parametrize("end", [0.5, -5.0])
def test_a_server_that_honours_all_passes(on: Any, processor: Any, end: float) -> None:
    setting = on(model=Toy(processor, end=end), images=3)
    found = check(setting, processor, images=3, rank=260)
    assert (found.name, found.context, found.trims) == ("served", 4096, False)
    assert setting.server.loaded == []


@pytest.mark.parametrize(
    ("flaw", "said"),
    [
        ("n", r"`n`: it gave 1 of 4"),
        ("logprobs", r"log-probabilities \(`logprobs`\)"),
        ("ids", r"token ids"),
        ("scores", r"--logprobs-mode raw_logprobs"),
        ("processed", r"temperature 1: --logprobs-mode raw_logprobs"),
        ("stop", r"`stop` with `stop_reason`"),
        ("excluded", r"`include_stop_str_in_output`"),
        ("continued", r"continued turns .* instead of"),
        ("seed", r"`seed`: the same request twice"),
        ("alike", r"draws of their own"),
        ("top_k", r"`top_k`"),
        ("template", r"chat template .* --chat-template"),
        ("tokenizer", r"the policy's own tokenizer"),
        ("tokens", r"own image processor .*has \d+ tokens instead of \d+"),
    ],
)
def test_a_server_that_passes_over_one_thing_is_caught(
    on: Any, processor: Any, flaw: str, said: str
) -> None:
    setting = on(flaws=frozenset([flaw]))
    with pytest.raises(ModelError, match=said) as error:
        check(setting, processor)
    if flaw != "template":  # which lengthens continued prompts, too
        assert str(error.value).count("\n- ") == 1


@pytest.mark.parametrize("how", [{"lora": False}, {"flaws": frozenset(["disabled"])}])
def test_a_server_without_adapters_is_caught_whichever_part_is_missing(
    on: Any, processor: Any, how: dict[str, Any]
) -> None:
    with pytest.raises(ModelError, match=r"LORA_UPDATING=True, --enable-lora, --max-lora-rank 8"):
        check(on(**how), processor, rank=7)


def test_all_that_is_missing_is_said_at_once(on: Any, processor: Any) -> None:
    setting = on(flaws=frozenset(["n", "stop", "continued"]), lora=False, context=400)
    with pytest.raises(ModelError) as error:
        check(setting, processor, images=2, rank=260, tokens=400)
    said = str(error.value)
    assert said.count("\n- ") == 6
    for part in ("`n`", "`stop`", "continued turns", "--max-lora-rank 320", "--max-model-len",
                 """--limit-mm-per-prompt '{"image": 2}'"""):  # fmt: skip
        assert part in said


def test_the_model_is_found_by_name_or_by_folder(tmp_path: Path) -> None:
    cards = [Card("a", "/m/a", None, 10), Card("b", str(tmp_path), None, 10)]
    assert find_model(cards, None, "a", "x").id == "a"
    assert find_model(cards, None, "/m/a", "x").id == "a"
    assert find_model(cards, None, str(tmp_path / "."), "x").id == "b"
    assert find_model(cards, "b", "c", "x").id == "b"
    with pytest.raises(ModelError, match=r"serves a, b, but no c; .*policy\.server\.model"):
        find_model(cards, None, "c", "x")


# --- stages ---------------------------------------------------------------------------------


def recipe(url: str, **policy: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "served",
            "policy": {
                "backend": "vllm",
                "server": {"base_url": url, "model": "served", "retries": 0, "concurrency": 3},
                **policy,
            },
            "search": {"candidates": 2, "max_sentences": 3, "sentence_tokens": 8},
        }
    )


def work_in(folder: Path) -> Work:
    own = StageDir(folder / "iter-1/candidates", "fingerprint")
    own.open()
    return Work(folder, Stage("iter-1/candidates", (), None, lambda w: {}, 1, "s", ""), own, {}, 0)


def test_a_search_that_lost_its_server_resumes_where_it_was(
    on: Any, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "_SHARD", 2)
    whole, cut = work_in(tmp_path / "whole"), work_in(tmp_path / "cut")
    good = on()
    searching.search_samples(recipe(good.server.url), whole, None, samples)
    bad = on(fails=lambda n: 500 if n > 25 else None)
    with pytest.raises(ServerError, match="server's log"):
        searching.search_samples(recipe(bad.server.url), cut, None, samples)
    assert cut.folder.has("candidates", 0) and not cut.folder.has("candidates", 1)
    figures = searching.search_samples(recipe(good.server.url), cut, None, samples)
    for kind, name in ((Candidate, "candidates"), (Drop, "drops")):
        assert cut.folder.read(name, kind) == whole.folder.read(name, kind)
    assert figures["engine"]["requests"] > 0  # type: ignore[index,call-overload]
    asked = len(good.server.chats)
    searching.search_samples(recipe(good.server.url), cut, None, samples)
    assert len(good.server.chats) == asked, "a finished search asks nothing"


@pytest.fixture
def adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with a stage that has an adapter, which stacks to a folder with its two files."""
    stage = tmp_path / "rft"
    (stage / "checkpoint").mkdir(parents=True)

    def stack(adapters: Adapters, out: Path) -> Path:
        folder = out / adapters.name
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text('{"r": 260}')
        (folder / "adapter_model.safetensors").touch()
        return folder

    stacked = Adapters((stage,), 260, "selfcal-abc")
    monkeypatch.setattr("selfcal.search.stacked.adapters_of", lambda *a: stacked)
    monkeypatch.setattr("selfcal.search.stacked.stack", stack)
    return tmp_path


def trained(folder: Path) -> Work:
    work = work_in(folder)
    return replace(work, inputs={"rft": StageDir(folder / "rft", "fingerprint")})


def test_an_adapter_is_loaded_for_the_search_and_unloaded_after_it(
    on: Any, samples: list[Sample], adapter: Path
) -> None:
    setting, work = on(), trained(adapter)
    searching.search_samples(recipe(setting.server.url), work, "rft", samples[:2])
    assert setting.server.loaded == ["selfcal-abc", "-selfcal-abc"]
    used = {b["model"] for b in setting.server.chats if "ignore_eos" not in b}
    assert used == {"selfcal-abc"}
    assert not (work.out / "serving").exists()


def test_an_adapter_is_unloaded_where_the_search_fails(
    on: Any, samples: list[Sample], adapter: Path
) -> None:
    setting = on(fails=lambda n: 500 if n > 12 else None)
    with pytest.raises(ServerError):
        searching.search_samples(recipe(setting.server.url), trained(adapter), "rft", samples)
    assert setting.server.loaded == ["selfcal-abc", "-selfcal-abc"]


def test_what_a_killed_run_left_on_the_server_is_replaced(
    on: Any, samples: list[Sample], adapter: Path
) -> None:
    setting = on(adapters={"selfcal-abc": "/gone"})
    searching.search_samples(recipe(setting.server.url), trained(adapter), "rft", samples[:1])
    assert setting.server.loaded == ["-selfcal-abc", "selfcal-abc", "-selfcal-abc"]


def test_a_server_with_too_low_a_rank_is_told_apart(
    on: Any, samples: list[Sample], adapter: Path
) -> None:
    setting, work = on(max_rank=16), trained(adapter)
    with pytest.raises(ModelError, match=r"260 is greater .* this very path .*--max-lora-rank 320"):
        searching.search_samples(recipe(setting.server.url), work, "rft", samples[:1])
    assert not (work.out / "serving").exists()


def test_a_server_of_the_merged_checkpoint_needs_no_adapter(
    on: Any, samples: list[Sample], adapter: Path
) -> None:
    setting = on(root=str(adapter / "rft" / "checkpoint"), lora=False)
    made = recipe(setting.server.url)
    use = serving.greedily(made, 1, samples)
    with serving.engine_for(made, trained(adapter), "rft", use) as engine:
        assert len(list(respond(None, samples[:1], 8, engine=engine))) == 1
    assert setting.server.loaded == []


def test_the_backend_is_part_of_what_a_search_depends_on() -> None:
    served, local = recipe("http://a/v1"), Recipe(name="local")
    assert serving.backend_of(served) == {"backend": "vllm"} and not serving.backend_of(local)
    elsewhere = recipe("http://b/v1")
    assert searching.search_settings(served) == searching.search_settings(elsewhere)


def test_an_ask_without_draws_is_answered_with_none(on: Any, samples: list[Sample]) -> None:
    def job(sample: Sample, place: Any) -> Job[int]:
        got = yield [Ask(place, np.zeros((0, 4))), Ask(place, np.full((1, 4), 0.5))]
        return 10 * len(got[0]) + len(got[1])

    assert list(on().engine.run(samples[:2], job)) == [1, 1]
