"""A llama-swap configuration becomes ours: key by key, and as a whole that loads."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from enginerouter.config.load import load_text
from enginerouter.config.model import Config, GenericProcess
from enginerouter.errors import ConfigError
from enginerouter.setup.importing import Result, import_file

ONE = "models: {a: {cmd: 'server --port ${PORT}'%s}}"


@pytest.fixture
def convert(tmp_path: Path) -> Callable[..., Result]:
    def convert(text: str, **environ: str) -> Result:
        file = tmp_path / "llama-swap.yaml"
        file.write_text(text)
        return import_file(file, tmp_path / "config.yaml", environ=environ)

    return convert


@pytest.fixture
def config_of(convert: Callable[..., Result], tmp_path: Path) -> Callable[..., Config]:
    def config_of(text: str, **environ: str) -> Config:
        written = convert(text, **environ).text
        return load_text(written, base_dir=tmp_path, environ=environ).config

    return config_of


@pytest.fixture
def refused(convert: Callable[..., Result]) -> Callable[[str], list[str]]:
    def refused(text: str) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            convert(text)
        return [f"{p.path}: {p.message}" for p in caught.value.problems]

    return refused


def engine_of(config: Config, name: str = "a") -> GenericProcess:
    engine = config.engines[name]
    assert isinstance(engine, GenericProcess)
    return engine


ConfigOf = Callable[..., Config]
Refused = Callable[[str], list[str]]
Convert = Callable[..., Result]


def test_the_smallest_file_becomes_an_engine_with_a_port_of_its_own(config_of: ConfigOf) -> None:
    config = config_of("models:\n  model1:\n    cmd: llama-server --port ${PORT} --model /path/to/model.gguf")
    engine = engine_of(config, "model1")
    assert engine.base_url is None
    assert engine.start_cmd == ("llama-server", "--port", "{port}", "--model", "/path/to/model.gguf")
    assert (engine.ready_path, engine.ready_status) == ("/health", 200)
    assert [(m.id, m.engine) for m in config.models] == [("model1", "model1")]


def test_a_command_of_several_lines_is_split_as_a_shell_would(config_of: ConfigOf) -> None:
    command = """models:
  a:
    cmd: |
      # a comment with ${no-macro} and a 'quote
      /opt/my\\ server \\
        --port ${PORT}
        # another
        --name 'two words' --json '{"a": "$5", "b": "{id}"}'
"""
    words = engine_of(config_of(command)).start_cmd
    assert words == (
        *("/opt/my server", "--port", "{port}", "--name", "two words", "--json"),
        '{"a": "$5", "b": "{id}"}',
    )


def test_macros_nest_and_a_models_own_win(config_of: ConfigOf) -> None:
    text = """
macros: {bin: "server --port ${PORT}", ctx: 4096, args: "--ctx ${ctx} --i ${MODEL_ID} ${on} ${yes}", on: true, yes: off}
models:
  a: {cmd: "${bin} ${args}"}
  b: {macros: {ctx: 16384}, cmd: "${bin} ${args}"}
"""
    config = config_of(text)
    assert engine_of(config).start_cmd == (
        *("server", "--port", "{port}", "--ctx", "4096"),
        *("--i", "a", "true", "off"),
    )
    assert engine_of(config, "b").start_cmd[4] == "16384"


def test_variables_of_the_environment_stay_variables(convert: Convert, config_of: ConfigOf) -> None:
    text = """
macros: {models: "${env.MODELS}/gguf"}
apiKeys: ["${env.KEY}", plain]
models: {a: {cmd: "server --port ${PORT} -m ${models}/a.gguf --cost $5", env: ["TOKEN=${env.TOKEN}"]}}
"""
    result = convert(text, MODELS="/m", KEY="0815", TOKEN="t")
    assert result.variables == ("KEY", "MODELS", "TOKEN")
    assert "0815" not in result.text
    config = config_of(text, MODELS="/m", KEY="0815", TOKEN="t")
    assert engine_of(config).start_cmd[3:] == ("-m", "/m/gguf/a.gguf", "--cost", "$5")
    assert engine_of(config).env == {"TOKEN": "t"}
    assert [k.key for k in config.api_keys] == ["0815", "plain"]
    # Imported where they are not set, for a machine where they are.
    assert convert(text).variables == result.variables


@pytest.mark.parametrize(
    ("keys", "url"),
    [
        ("", None),
        (", proxy: 'http://127.0.0.1:${PORT}'", None),
        (", proxy: 'http://localhost:${PORT}/'", None),
        (", proxy: 'http://127.0.0.1:9000'", "http://127.0.0.1:9000"),
        (", proxy: 'http://10.0.0.5:${PORT}'", "http://10.0.0.5:5800"),
        (", proxy: 'http://127.0.0.1:${PORT}/api'", "http://127.0.0.1:5800/api"),
    ],
)
def test_where_a_model_answers(config_of: ConfigOf, keys: str, url: str | None) -> None:
    engine = engine_of(config_of(ONE % keys))
    assert engine.base_url == url
    assert engine.start_cmd[-1] == (
        "5800" if (url is not None and "5800" in url) or url == "http://127.0.0.1:9000" else "{port}"
    )


def test_ports_that_must_be_known_are_given_one_after_the_other(config_of: ConfigOf) -> None:
    model = "{cmd: 's --port ${PORT}', proxy: 'http://127.0.0.1:${PORT}/api'}"
    config = config_of(f"startPort: 7000\nmodels: {{a: {model}, b: {model}, c: {{cmd: 's ${{PORT}}'}}}}")
    assert [e.base_url for e in config.engines.values()] == [
        "http://127.0.0.1:7000/api",
        "http://127.0.0.1:7001/api",
        None,
    ]


def test_a_port_in_the_command_is_the_address(config_of: ConfigOf, refused: Refused) -> None:
    assert engine_of(config_of("models: {a: {cmd: 'server --port 9001'}}")).base_url == "http://127.0.0.1:9001"
    assert refused("models: {a: {cmd: server}}") == ["models.a.proxy: is missing, and cmd does not use ${PORT}"]


def test_limits_and_times(config_of: ConfigOf) -> None:
    text = """
healthCheckTimeout: 5
globalTTL: 600
unloadTimeout: 20
models:
  a:
    {cmd: "s ${PORT}", ttl: 60, unloadTimeout: 7, concurrencyLimit: 3, checkEndpoint: /u, timeouts: {responseHeader: 9}}
  b: {cmd: "s ${PORT}", ttl: 0, checkEndpoint: none}
  c: {cmd: "s ${PORT}", ttl: -1}
"""
    config = config_of(text)
    a, b, c = (engine_of(config, name) for name in "abc")
    assert (a.start_timeout_s, a.idle_unload_s, a.stop_timeout_s) == (15, 60, 7)
    assert (a.max_in_flight, a.first_byte_timeout_s, a.ready_path) == (3, 9, "/u")
    assert (b.idle_unload_s, b.stop_timeout_s, b.ready_path) == (None, 20, None)
    assert c.idle_unload_s == 600


def test_names_aliases_and_what_the_engine_calls_it(config_of: ConfigOf) -> None:
    text = """
models:
  org/a:
    cmd: s ${PORT}
    name: The A
    description: what it is for
    useModelName: upstream/A
    aliases: [short, {id: quiet, unlisted: true}, {id: shown}]
    capabilities: {context: 8192, tools: true}
"""
    config = config_of(text)
    (model,) = config.models
    assert (model.id, model.engine, model.upstream_id) == ("org/a", "org-a", "upstream/A")
    assert (model.display_name, model.description, model.context_length) == ("The A", "what it is for", 8192)
    assert {name: (a.target, a.hidden) for name, a in config.aliases.items()} == {
        "short": ("org/a", True),
        "quiet": ("org/a", True),
        "shown": ("org/a", False),
    }
    listed = config_of("includeAliasesInList: true\n" + ONE % ", aliases: [short]")
    assert not listed.aliases["short"].hidden


def test_an_engine_is_never_called_like_the_first_part_of_a_model(config_of: ConfigOf) -> None:
    config = config_of(
        "models: {org: {cmd: 's ${PORT}'}, org/a: {cmd: 's ${PORT}', aliases: [b]}, '8': {cmd: 's ${PORT}'}}"
    )
    assert list(config.engines) == ["org-2", "org-a", "8"]
    assert [m.id for m in config.models] == ["org", "org/a", "8"]


def test_filters_and_ids_with_parameters_of_their_own(config_of: ConfigOf) -> None:
    text = """
models:
  a:
    cmd: s ${PORT}
    aliases: ["a:high"]
    filters:
      strip_params: "temperature, top_p,model"
      setParams: {top_k: 5, model: no}
      setParamsByID:
        "${MODEL_ID}": {chat_template_kwargs: {reasoning_effort: medium}}
        "${MODEL_ID}:high": {chat_template_kwargs: {reasoning_effort: high}}
"""
    config = config_of(text)
    plain, high = config.models
    assert plain.strip_params == high.strip_params == ("temperature", "top_p")
    assert plain.set_params == {"top_k": 5, "chat_template_kwargs": {"reasoning_effort": "medium"}}
    assert high.set_params == {"top_k": 5, "chat_template_kwargs": {"reasoning_effort": "high"}}
    assert (high.id, high.engine, high.upstream_id) == ("a:high", "a", "a")
    assert not config.aliases


def test_containers_are_stopped_by_their_name(config_of: ConfigOf, convert: Convert) -> None:
    text = """
models:
  named: {cmd: "docker run --rm --name ${MODEL_ID} -p ${PORT}:8080 image", cmdStop: "docker stop -t 5 ${MODEL_ID}"}
  joined: {cmd: "podman run --rm --name=box -p ${PORT}:8080 image"}
  unnamed: {cmd: "docker run --rm -p ${PORT}:8080 image"}
  killed: {cmd: "server ${PORT}", cmdStop: "kill -9 ${PID}"}
"""
    config = config_of(text)
    assert engine_of(config, "named").stop_cmd == ("docker", "stop", "-t", "5", "named")
    assert engine_of(config, "joined").stop_cmd == ("podman", "stop", "box")
    assert engine_of(config, "unnamed").start_cmd[:4] == ("docker", "run", "--name", "enginerouter-unnamed")
    assert engine_of(config, "unnamed").stop_cmd == ("docker", "stop", "enginerouter-unnamed")
    assert engine_of(config, "killed").stop_cmd == ()
    assert "stop signal goes to the whole process tree" in convert(text).text


GROUPS = [
    ("{}", []),
    ("{g: {members: [a, b]}}", []),
    ("{g: {swap: false, members: [a, b]}}", ["ab"]),
    ("{g: {swap: false, members: [a, b]}, h: {swap: false, exclusive: false, persistent: true, members: [d]}}",
     ["abd", "cd"]),
    ("{g: {swap: true, exclusive: false, members: [a, b]}, h: {exclusive: false, members: [c, d]}}",
     ["ac", "ad", "bc", "bd"]),
]  # fmt: skip


@pytest.mark.parametrize(("groups", "together"), GROUPS)
def test_groups_say_who_may_stay_together(config_of: ConfigOf, groups: str, together: list[str]) -> None:
    models = "models: {" + ", ".join(f"{name}: {{cmd: 's ${{PORT}}'}}" for name in "abcd") + "}"
    for text in (f"groups: {groups}", f"routing: {{router: {{use: group, settings: {{groups: {groups}}}}}}}"):
        config = config_of(f"{text}\n{models}")
        assert sorted("".join(names) for names in config.together) == together


def test_groups_that_are_not_what_they_seem_are_told(convert: Convert, refused: Refused) -> None:
    models = "models: {a: {cmd: 's ${PORT}'}, b: {cmd: 's ${PORT}'}}"
    result = convert(f"{models}\ngroups: {{g: {{exclusive: false, members: [a]}}}}")
    assert any("'a' and 'b' run together only if started in one order" in note for note in result.notes)
    assert refused(f"{models}\ngroups: {{g: {{members: [a, x]}}, h: {{members: [a]}}}}") == [
        "groups.g.members: there is no model 'x'",
        "groups.h.members: 'a' is in group 'g' already",
    ]


MATRIX = """
models: {%s}
matrix:
  vars: {g: a, q: b, v: c, e: d}
  evict_costs: {v: 50}
  sets: {standard: "(g | q) & v", more: "+standard & e", full: "q"}
"""


def test_a_matrix_says_who_may_stay_together(config_of: ConfigOf, convert: Convert) -> None:
    text = MATRIX % ", ".join(f"{name}: {{cmd: 's ${{PORT}}'}}" for name in "abcd")
    assert sorted("".join(names) for names in config_of(text).together) == ["acd", "bcd"]
    assert any(note.startswith("matrix.evict_costs has no equal") for note in convert(text).notes)


@pytest.mark.parametrize(
    ("sets", "why"),
    [
        ("{x: 'g &'}", "it ends too early"),
        ("{x: '(g'}", "a ')' is missing"),
        ("{x: 'g q'}", "'q' is not expected here"),
        ("{x: 'z'}", "'z' is not among its vars"),
        ("{x: '+y', y: '+x'}", "the set 'x' contains itself"),
        ("{x: '+y'}", "there is no set 'y'"),
        (f"{{x: '{'(' * 60}'}}", "it is nested too deeply"),
        (f"{{x: '{' & '.join(['(g|q)'] * 20)}'}}", "it allows too many combinations"),
    ],
)  # fmt: skip
def test_a_set_that_cannot_be_read_is_refused(refused: Refused, sets: str, why: str) -> None:
    models = "models: {a: {cmd: 's ${PORT}'}, b: {cmd: 's ${PORT}'}}"
    assert refused(f"{models}\nmatrix: {{vars: {{g: a, q: b}}, sets: {sets}}}") == [f"matrix.sets: {why}"]


def test_what_is_preloaded_together_must_fit_together(config_of: ConfigOf, convert: Convert) -> None:
    models = "models: {a: {cmd: 's ${PORT}'}, b: {cmd: 's ${PORT}'}, c: {cmd: 's ${PORT}'}}"
    text = f"{models}\ngroups: {{g: {{swap: false, members: [a, b]}}}}\nhooks: {{on_startup: {{preload: [a, c, b]}}}}"
    assert [name for name, e in config_of(text).engines.items() if e.preload] == ["a", "b"]
    assert any("'c' cannot be in memory beside a" in note for note in convert(text).notes)


def test_peers_are_remote_engines(config_of: ConfigOf) -> None:
    text = """
models: {a: {cmd: "s ${PORT}"}}
peers:
  box: {proxy: "http://192.168.1.23", models: [m1, org/m2, a]}
  openrouter:
    proxy: https://openrouter.ai/api
    apiKey: ${env.OPENROUTER_API_KEY}
    models: [x/y]
    filters: {setParams: {provider: {zdr: true}}, stripParams: top_p}
"""
    config = config_of(text, OPENROUTER_API_KEY="k")
    box, router = config.engines["box"], config.engines["openrouter"]
    assert (box.type, box.base_url, box.api_key) == ("remote", "http://192.168.1.23", None)
    assert (router.base_url, router.api_key) == ("https://openrouter.ai/api", "k")
    assert [(m.id, m.engine) for m in config.models] == [
        ("a", "a"), ("m1", "box"), ("org/m2", "box"), ("x/y", "openrouter")
    ]  # fmt: skip
    assert config.models[3].set_params == {"provider": {"zdr": True}}
    assert config.models[3].strip_params == ("top_p",)


def test_what_has_no_equal_is_a_note_and_a_comment(convert: Convert) -> None:
    result = convert(f"sendLoadingState: true\nnews: 1\n{ONE % ', unlisted: true, metadata: {x: 1}, colour: red'}")
    assert [note.partition(" has")[0] for note in result.notes] == [
        "models.a.unlisted", "models.a.metadata", "models.a.colour", "sendLoadingState", "news",
    ]  # fmt: skip
    assert "# no equal of unlisted: every model is listed" in result.text


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        (ONE % ", env: {a: 5}", ["models.a.env: must be a list of text"]),
        ("models: {a: {}}", ["models.a.cmd: is missing"]),
        ("models: {a: {cmd: 's ${PORT} ${nope}'}}", ["models.a.cmd: there is no macro '${nope}'"]),
        ("models: {a: {cmd: \"s ${PORT} 'open\"}}", ["models.a.cmd: cannot be split into words: No closing quotation"]),
        ("macros: {x: '${y}', y: '${x}'}\nmodels: {a: {cmd: 's ${PORT} ${x}'}}",
         ["models.a.cmd: its macros contain each other"]),
        ("macros: {x: '${y}${y}${y}${y}${y}${y}', y: '%s'}\nmodels: {a: {cmd: 's ${x}'}}" % ("y" * 20000),
         ["models.a.cmd: macros make it longer than 64 KiB"]),
        ("models: {a: 5}", ["models.a: must be a mapping", "models.a.cmd: is missing"]),
        (ONE % ", ttl: soon", ["models.a.ttl: must be a number, not 'soon'"]),
        (ONE % ", filters: {setParams: 5}", ["models.a.filters.setParams: must be a mapping"]),
        (ONE % ", aliases: [x, x]", ["models.a.aliases: 'x' is already a name"]),
        (ONE % ", aliases: 5", ["models.a.aliases: must be a list"]),
        (ONE % ", proxy: 'ftp://x'", None),
        ("logLevel: loud\n" + ONE % "", ["logLevel: 'loud' is no level"]),
        (ONE % "" + "\npeers: {p: {models: [x]}}", ["peers.p.proxy: is missing"]),
        (ONE % "" + "\nhooks: {on_startup: {preload: [x]}}", ["hooks.on_startup.preload: there is no model 'x'"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_place(refused: Refused, text: str, problems: list[str] | None) -> None:
    found = refused(text)
    assert problems is None or found == problems
    assert found


@pytest.mark.parametrize("value", [5, [{"x": [None]}]])
def test_no_value_at_any_place_gives_a_traceback(convert: Convert, value: Any) -> None:
    whole = yaml.safe_load(FULL)

    def places(node: Any, at: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        return [at, *(place for key, child in inner for place in places(child, (*at, key)))]

    for place in places(whole, ())[1:]:
        broken = yaml.safe_load(FULL)
        node = broken
        for step in place[:-1]:
            node = node[step]
        node[place[-1]] = value
        with contextlib.suppress(ConfigError):
            convert(yaml.safe_dump(broken))


FULL = """
healthCheckTimeout: 500
logLevel: info
startPort: 10001
globalTTL: 0
macros: {m: x}
apiKeys: [k]
models:
  a:
    macros: {ctx: 1}
    cmd: "s ${PORT} ${ctx} ${m}"
    cmdStop: stop it
    name: A
    env: [A=b]
    proxy: http://127.0.0.1:${PORT}
    checkEndpoint: /up
    ttl: 1
    unloadTimeout: 1
    useModelName: x
    filters: {stripParams: a, setParams: {a: 1}, setParamsByID: {b: {c: 1}}}
    aliases: [x, {id: y}]
    concurrencyLimit: 2
    timeouts: {connect: 1, responseHeader: 1}
    capabilities: {context: 5}
groups: {g: {swap: false, members: [a]}}
hooks: {on_startup: {preload: [a]}}
peers: {p: {proxy: "http://h", apiKey: k, models: [z], filters: {stripParams: a}}}
"""
