"""Bad input on the command line: exit code 2, one clear sentence and its remedy, no traceback, nothing half-written."""

import json
import shutil
import socket
import threading

import pytest

from edgewise import cli
from edgewise.router import certificate as certificates


@pytest.fixture
def edgewise(monkeypatch, capsys):
    """Run the command line in this process; returns exit code, standard output and standard error."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["edgewise", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        captured = capsys.readouterr()
        return code, captured.out, " ".join(captured.err.split())

    return run


@pytest.fixture
def bundle(tiny_text_bundle, tmp_path):
    copy = tmp_path / "bundle"
    shutil.copytree(tiny_text_bundle, copy)
    return copy


def refused(result, *says):
    code, _, err = result
    assert code == 2, err
    assert "Traceback" not in err
    for text in says:
        assert text in err, err


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position % len(data)] ^= 1
    path.write_bytes(data)


def test_a_flipped_byte_in_any_file_of_a_bundle(edgewise, bundle):
    for path in sorted(item for item in bundle.rglob("*") if item.is_file()):
        original = path.read_bytes()
        flip(path, len(original) // 2)
        refused(edgewise("verify", bundle))
        path.write_bytes(original)
    assert edgewise("verify", bundle)[0] == 0


def test_a_missing_blob(edgewise, bundle):
    blob = next((bundle / "blobs" / "sha256").iterdir())
    blob.unlink()
    refused(edgewise("inspect", bundle), blob.name[:12])


def test_a_newer_format(edgewise, bundle):
    manifest = bundle / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"format_version":1', b'"format_version":2'))
    refused(edgewise("verify", bundle), "2", "pip install")


def test_a_path_that_leaves_the_bundle(edgewise, bundle):
    manifest = bundle / "manifest.json"
    digest = json.loads(manifest.read_bytes())["core"]["golden"]["digest"]
    manifest.write_bytes(manifest.read_bytes().replace(digest.encode(), b"sha256:../../../etc/passwd"))
    refused(edgewise("verify", bundle))


@pytest.mark.parametrize("command", ["verify", "inspect"])
def test_no_bundle_at_all(edgewise, tmp_path, command):
    refused(edgewise(command, tmp_path / "nowhere"), "nowhere")
    refused(edgewise(command, tmp_path), str(tmp_path)[:20])


def test_predicting_with_a_corrupt_bundle(edgewise, bundle):
    flip(bundle / "manifest.json", 40)
    refused(edgewise("predict", bundle, "wheat"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", ["no item"]),
        (b'{"text": "a"}\n{"text": \n', ["line 2"]),
        (b'{"text": "caf\xe9"}\n', ["UTF-8"]),
        (b'{"body": "a"}\n', ["line 1", "text", "--text-field"]),
        (b'["a"]\n', ["line 1"]),
    ],
)
def test_data_that_cannot_be_used(edgewise, bundle, tmp_path, content, says):
    data = tmp_path / "data.jsonl"
    data.write_bytes(content)
    predictions = write_jsonl(tmp_path / "p.jsonl", [{"output": "ship", "model": "m", "model_version": "1"}])
    refused(edgewise("certify", bundle, "--predictions", predictions, "--data", data), "data.jsonl", *says)


def test_too_few_items_say_how_many_are_needed(edgewise, bundle, tmp_path):
    data = write_jsonl(tmp_path / "data.jsonl", [{"text": "wheat"}] * 100)
    predictions = write_jsonl(tmp_path / "p.jsonl", [{"output": "grain", "model": "m", "model_version": "1"}] * 100)
    result = edgewise("certify", bundle, "--predictions", predictions, "--data", data, "--alpha", 0.01, "--delta", 0.05)
    refused(result, "100 certifying items", "299 are needed")
    assert not (tmp_path / "bundle.certificate.json").exists()


@pytest.mark.parametrize(
    ("option", "value"), [("--alpha", "0"), ("--alpha", "1"), ("--delta", "-1"), ("--alpha", "nan")]
)
def test_alpha_and_delta_out_of_range(edgewise, bundle, tmp_path, option, value):
    data = write_jsonl(tmp_path / "data.jsonl", [{"text": "wheat"}])
    predictions = write_jsonl(tmp_path / "p.jsonl", [{"output": "grain", "model": "m", "model_version": "1"}])
    refused(edgewise("certify", bundle, "--predictions", predictions, "--data", data, option, value), option[2:])


def certify_rows(tmp_path, count=400, output="grain"):
    data = write_jsonl(tmp_path / "data.jsonl", [{"text": "wheat corn"}] * count)
    rows = [{"output": output, "model": "m", "model_version": "1"}] * count
    return data, write_jsonl(tmp_path / "p.jsonl", rows)


def test_a_certificate_that_exists_is_not_overwritten(edgewise, bundle, tmp_path):
    data, predictions = certify_rows(tmp_path)
    arguments = ("certify", bundle, "--predictions", predictions, "--data", data)
    assert edgewise(*arguments)[0] == 0
    before = (tmp_path / "bundle.certificate.json").read_bytes()
    refused(edgewise(*arguments), "exists already", "--overwrite")
    assert edgewise(*arguments, "--cached")[0] == 0
    assert (tmp_path / "bundle.certificate.json").read_bytes() == before


def test_cached_issues_again_when_an_input_changed(edgewise, bundle, tmp_path):
    data, predictions = certify_rows(tmp_path)
    arguments = ("certify", bundle, "--predictions", predictions, "--data", data, "--cached", "--json")
    first = json.loads(edgewise(*arguments)[1])
    again = json.loads(edgewise(*arguments, "--alpha", 0.02)[1])
    assert (first["bound"]["alpha"], again["bound"]["alpha"]) == (0.01, 0.02)


def test_predictions_that_do_not_fit_the_data(edgewise, bundle, tmp_path):
    data, _ = certify_rows(tmp_path)
    short = write_jsonl(tmp_path / "short.jsonl", [{"output": "grain", "model": "m", "model_version": "1"}] * 3)
    refused(edgewise("certify", bundle, "--predictions", short, "--data", data), "3 answers", "400 items")
    mixed = write_jsonl(
        tmp_path / "mixed.jsonl", [{"output": "grain", "model": "m", "model_version": str(i)} for i in range(400)]
    )
    refused(edgewise("certify", bundle, "--predictions", mixed, "--data", data), "400 references")
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"output": "grain", "model": "m", "model_version": "1"}\n{"output": 3}\n')
    refused(edgewise("certify", bundle, "--predictions", broken, "--data", data), "line 2")


def tuned(bundle, tmp_path, count=400):
    """A certify command with a tuning part, and recorded answers to both."""
    data, predictions = certify_rows(tmp_path, count)
    tuning = write_jsonl(
        tmp_path / "tuning.jsonl", [{"text": f"wheat vessel {i}", "label": "grain", "place": "here"} for i in range(60)]
    )
    answers = [{"output": "grain" if i % 3 else "ship", "model": "m", "model_version": "1"} for i in range(60)]
    recorded = write_jsonl(tmp_path / "t.jsonl", answers)
    certify = ("certify", bundle, "--predictions", predictions, "--data", data)
    return certify, ("--tuning", tuning, "--tuning-predictions", recorded)


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        (("--target", "truth"), ["no target 'truth'", "agreement, accuracy, selective"]),
        (("--target", "accuracy"), ["needs a tuning part", "--tuning FILE"]),
        (("--signal", "vibes"), ["no signal 'vibes'", "margin"]),
        (("--signal", "auto"), ["needs a tuning part"]),
        (("--veto",), ["needs a tuning part"]),
        (("--complexity",), ["needs a tuning part"]),
        (("--keep-texts",), ["needs a tuning part"]),
        (("--group-by", "place"), ["must be fixed", "--groups a,b,c"]),
        (("--group-by", "place", "--groups", "here"), ["no field 'place'"]),
        (("--group-by", "label", "--groups", "zebra"), ["no label 'zebra'", "grain"]),
        (("--groups", "grain"), ["--group-by"]),
        (("--group-by", "label", "--alpha", "0.005"), ["are needed"]),
        (("--valid-days", "-1"), ["cannot live -1 days"]),
        (("--valid-days", "1e9"), ["cannot live 1000000000 days", "up to 36500"]),
        (("--signal", "mean_logprob"), ["log-probabilities of tokens", "margin"]),
        (("--label-field", "truth"), ["field 'truth' that --label-field names"]),
        (("--wait", "-1"), ["--wait"]),
        (("--timeout", "-3"), ["--timeout"]),
        (("--plot", "curve.gif"), ["curve.gif", ".svg"]),
        (("--config", "nowhere.toml"), ["nowhere.toml"]),
        (("--tuning", "nowhere.jsonl"), ["go together"]),
        (("--tuning", "nowhere.jsonl", "--tuning-predictions", "t.jsonl"), ["t.jsonl"]),
    ],
)
def test_wishes_that_cannot_be_granted(edgewise, bundle, tmp_path, wish, says):
    certify, _ = tuned(bundle, tmp_path)
    refused(edgewise(*certify, *wish), *says)
    assert [path.name for path in tmp_path.glob("bundle.*")] == []


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        (("--veto",), ["--veto needs embeddings", "--recipes embedding+"]),
        (("--signal", "margin:heat=2"), ["no option 'heat'"]),
        (("--target", "selective"), ["has no labels"]),
        (("--target", "selective", "--group-by", "label"), ["certified for agreement"]),
    ],
)
def test_wishes_that_a_tuning_part_does_not_help(edgewise, bundle, tmp_path, wish, says):
    certify, tuning = tuned(bundle, tmp_path)
    refused(edgewise(*certify, *tuning, *wish), *says)
    assert [path.name for path in tmp_path.glob("bundle.*")] == []


def test_a_tuning_part_that_overlaps(edgewise, bundle, tmp_path):
    certify, tuning = tuned(bundle, tmp_path)
    with (tmp_path / "tuning.jsonl").open("a") as part:
        part.write('{"text": "wheat corn", "label": "grain"}\n' * 4)
    refused(edgewise(*certify, *tuning), "4 of the 64 tuning items", "disjoint")
    assert [path.name for path in tmp_path.glob("bundle.*")] == []


def test_recorded_answers_that_do_not_fit_the_tuning_part(edgewise, bundle, tmp_path):
    certify, tuning = tuned(bundle, tmp_path)
    recorded = tmp_path / "t.jsonl"
    whole = recorded.read_text()
    recorded.write_text("".join(whole.splitlines(keepends=True)[:9]))
    refused(edgewise(*certify, *tuning), "9 answers for the 60 items")
    recorded.write_text(whole.replace('"1"', '"2"'))
    refused(edgewise(*certify, *tuning), "answers of m 2, not of m 1")
    url = ("--cloud", "http://127.0.0.1:9")
    refused(edgewise("certify", bundle, *url, "--data", tmp_path / "data.jsonl", *tuning), "--tuning-predictions")
    assert [path.name for path in tmp_path.glob("bundle.*")] == []


def test_certify_tells_what_it_chose_and_what_it_promises(edgewise, bundle, tmp_path):
    certify, tuning = tuned(bundle, tmp_path)
    code, out, err = edgewise(*certify, *tuning, "--valid-days", 30, "--keep-texts")
    assert code == 0, err
    told = " ".join(out.split())
    assert "With 95 % confidence, at most 1 % of all requests like the 400 certifying ones" in told
    assert "The promise ends at" in told
    assert "AURC" in told
    assert "399 of the 400 certifying items repeat" in err
    code, out, err = edgewise(*certify, "--overwrite", "--group-by", "label", "--groups", "grain")
    assert "in each of the 1 groups by label" in " ".join(out.split()), err
    assert "The price of groups: each needs 299 items" in " ".join(out.split())


def test_where_nothing_certifies_the_exit_code_says_so_and_the_certificate_is_there(edgewise, bundle, tmp_path):
    data, predictions = certify_rows(tmp_path, output="ship")
    code, out, _ = edgewise("certify", bundle, "--predictions", predictions, "--data", data)
    assert code == 1
    assert "No threshold keeps the promise" in " ".join(out.split())
    assert (tmp_path / "bundle.certificate.json").is_file()


def test_a_kept_certificate_says_that_nothing_was_computed(edgewise, bundle, tmp_path):
    data, predictions = certify_rows(tmp_path)
    again = ("certify", bundle, "--predictions", predictions, "--data", data, "--cached")
    outs = [" ".join(edgewise(*again)[1].split()) for _ in range(2)]
    assert ["Nothing was computed" in out for out in outs] == [False, True]
    assert ["differ from the cloud" in out for out in outs] == [True, False]


def test_what_explain_refuses(edgewise, bundle, tmp_path):
    certify, tuning = tuned(bundle, tmp_path)
    refused(
        edgewise("explain", bundle, "wheat", "--certificate", tmp_path / "none.json"), "none.json", "edgewise certify"
    )
    refused(edgewise("explain", bundle, "wheat", "--tuning", tmp_path / "none.jsonl"), "none.jsonl")
    refused(edgewise("explain", bundle, "wheat", "--attribute", "region"), "NAME=VALUE")
    refused(edgewise("explain", tmp_path, "wheat"), str(tmp_path)[:20])
    assert edgewise(*certify, *tuning, "--complexity", "--signal", "margin", "--keep-texts")[0] == 0
    assert edgewise("explain", bundle, "wheat corn")[0] == 0
    kept = tmp_path / "bundle.neighbours.jsonl"
    kept.write_bytes(kept.read_bytes()[:-9])
    refused(edgewise("explain", bundle, "wheat"), "neighbours.jsonl", "--keep-texts")
    kept.unlink()
    fitted = tmp_path / "bundle.fitted.npz"
    flip(fitted, 999)
    refused(edgewise("explain", bundle, "wheat"), "bundle.fitted.npz", "certify again")
    fitted.unlink()
    refused(edgewise("explain", bundle, "wheat"), "bundle.fitted.npz", "certify again")
    certificate = tmp_path / "bundle.certificate.json"
    flip(certificate, 99)
    refused(edgewise("explain", bundle, "wheat"), "certificate")


def test_explain_tells_why(edgewise, bundle, tmp_path):
    code, out, _ = edgewise("explain", bundle, "wheat corn")
    assert code == 0
    assert "no certificate is in force" in out
    certify, tuning = tuned(bundle, tmp_path)
    assert edgewise(*certify, *tuning, "--signal", "margin", "--keep-texts")[0] == 0
    code, out, _ = edgewise("explain", bundle, "wheat corn", "--json")
    (row,) = json.loads(out)
    assert (row["output"], row["action"], row["reason"]) == ("grain", "local", "confident")
    assert len(row["nearest"]) == 5
    code, out, _ = edgewise("explain", bundle, "wheat corn")
    assert "its score lies above the threshold" in out
    assert "nearest by score" in out


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_cloud_that_refuses(edgewise, bundle, tmp_path):
    data, _ = certify_rows(tmp_path)
    url = f"http://127.0.0.1:{free_port()}"
    refused(edgewise("certify", bundle, "--cloud", url, "--data", data), url)
    assert not (tmp_path / "bundle.certificate.json").exists()


def test_a_cloud_that_hangs_is_given_up_after_the_time_out(edgewise, bundle, tmp_path):
    data, _ = certify_rows(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        held = []
        threading.Thread(target=lambda: held.append(silent.accept()), daemon=True).start()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        refused(edgewise("certify", bundle, "--cloud", url, "--data", data, "--timeout", 0.3), url, "0.3")


def test_a_cloud_url_that_is_none(edgewise, bundle, tmp_path):
    data, _ = certify_rows(tmp_path)
    refused(edgewise("certify", bundle, "--cloud", "not a url", "--data", data), "not a url")


def test_certify_wants_exactly_one_source_of_answers(edgewise, bundle, tmp_path):
    data, predictions = certify_rows(tmp_path)
    refused(edgewise("certify", bundle, "--data", data), "--cloud")
    refused(edgewise("certify", bundle, "--data", data, "--cloud", "http://x", "--predictions", predictions), "either")


def test_a_gateway_without_a_certificate_or_with_anothers(edgewise, bundle, tmp_path):
    refused(edgewise("edge", "serve", bundle, "--cloud", "http://127.0.0.1:9"), "no certificate", "edgewise certify")
    data, predictions = certify_rows(tmp_path)
    assert edgewise("certify", bundle, "--predictions", predictions, "--data", data)[0] == 0
    certificate = tmp_path / "bundle.certificate.json"
    certificate.write_bytes(certificate.read_bytes().replace(b'"signal": "margin"', b'"signal": "margim"'))
    refused(edgewise("edge", "serve", bundle, "--cloud", "http://127.0.0.1:9"), "changed after it was issued")


def test_a_certificate_of_another_kind_of_machine(edgewise, bundle, tmp_path):
    data, predictions = certify_rows(tmp_path)
    assert edgewise("certify", bundle, "--predictions", predictions, "--data", data)[0] == 0
    path = tmp_path / "bundle.certificate.json"
    certificate = certificates.decode(path.read_bytes())
    elsewhere = {name: getattr(certificate, name) for name in certificate.__struct_fields__ if name != "id"}
    path.write_bytes(certificates.encode(certificates.issue(**{**elsewhere, "isa": "aarch64-dotprod"})))
    serve = ("edge", "serve", bundle, "--cloud", "http://127.0.0.1:9")
    refused(edgewise(*serve), "aarch64-dotprod", "--other-machine")
    with socket.create_server(("127.0.0.1", 0)) as taken:  # it gets as far as binding, and no further
        refused(edgewise(*serve, "--other-machine", "--port", taken.getsockname()[1]), "port")


def test_two_tenants_with_one_key(edgewise, bundle, monkeypatch):
    monkeypatch.setenv("SHARED_KEYS", "a:k,b:k")
    result = edgewise("edge", "serve", bundle, "--mode", "edge_only", "--api-keys-env", "SHARED_KEYS")
    refused(result, "several tenants")


def test_a_log_level_that_is_none(edgewise, bundle, monkeypatch):
    monkeypatch.setenv("EDGEWISE_LOG", "loud")
    refused(edgewise("verify", bundle), "EDGEWISE_LOG")


def test_a_gateway_without_a_cloud(edgewise, bundle, tmp_path):
    data, predictions = certify_rows(tmp_path)
    assert edgewise("certify", bundle, "--predictions", predictions, "--data", data)[0] == 0
    refused(edgewise("edge", "serve", bundle), "no cloud", "--cloud URL")


def test_a_gateway_with_a_bad_configuration(edgewise, tmp_path):
    config = tmp_path / "edgewise.toml"
    config.write_text("[edge]\nbudget_mss = 3\n")
    refused(edgewise("edge", "serve", "--config", config), "budget_ms")
    refused(edgewise("edge", "serve"), "No bundle is given")


def test_an_output_that_cannot_be_written(edgewise, bundle, tmp_path):
    data, predictions = certify_rows(tmp_path)
    certify = ("certify", bundle, "--predictions", predictions, "--data", data)
    refused(edgewise(*certify, "--out", data / "x" / "c.json"), "data.jsonl")
    refused(edgewise(*certify, "--out", tmp_path, "--overwrite"), str(tmp_path)[:10])


def test_a_port_that_is_taken(edgewise, bundle):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused(edgewise("edge", "serve", bundle, "--mode", "edge_only", "--port", port), str(port))


def test_a_cloud_service_over_no_model(edgewise, tmp_path):
    refused(edgewise("cloud", "serve", tmp_path), "manifest.json", "config.json")


@pytest.mark.parametrize("name", ["nowhere", "bert-base-uncased", "org/model"])
def test_a_checkpoint_that_is_not_there_is_never_looked_for_elsewhere(edgewise, monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)

    resolve = socket.getaddrinfo

    def resolve_own(host, *more, **named):
        assert host == "127.0.0.1", f"{host} was looked up"
        return resolve(host, *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", resolve_own)
    data = write_jsonl(tmp_path / "data.jsonl", [{"text": "wheat", "label": "grain"}])
    refused(edgewise("quantize", name, "--data", data, "--out", "run"), f"no checkpoint at {name}", "local folder")
    refused(edgewise("cloud", "serve", name), f"{name} is no folder")
    assert [path.name for path in tmp_path.iterdir()] == ["data.jsonl"]


def test_evaluating_a_gateway_that_cannot_be_addressed(edgewise, bundle, tmp_path):
    data, predictions = certify_rows(tmp_path)
    assert edgewise("certify", bundle, "--predictions", predictions, "--data", data)[0] == 0
    for url in ("not a url", "http://me:pa55word@127.0.0.1:9"):
        result = edgewise(
            "evaluate",
            bundle,
            "--gateway",
            url,
            "--cloud",
            "http://127.0.0.1:9",
            "--data",
            data,
            "--out",
            tmp_path / "out",
        )
        refused(result, "gateway URL")
        assert "pa55word" not in "".join(map(str, result))
    assert not (tmp_path / "out").exists()


def test_an_api_key_variable_that_is_not_set(edgewise, bundle):
    refused(edgewise("edge", "serve", bundle, "--mode", "edge_only", "--api-keys-env", "NOT_SET_HERE"), "NOT_SET_HERE")


def test_unknown_commands_and_options_are_usage_errors(edgewise):
    assert edgewise("quantise")[0] == 2
    assert edgewise("verify", "x", "--jsn")[0] == 2


def test_json_is_for_machines(edgewise, bundle):
    code, out, _ = edgewise("inspect", bundle, "--json")
    described = json.loads(out)
    assert code == 0
    assert described["model_digest"].startswith("sha256:")
    assert described["core"]["task"] == "text-classification"
    rows = json.loads(edgewise("predict", bundle, "wheat", "vessel", "--json")[1])
    assert [row["output"] for row in rows] == ["grain", "ship"]
    assert json.loads(edgewise("doctor", "--json")[1])["healthy"] is True


def test_what_speaks_of_labels_refuses_a_language_model(edgewise, tiny_generator_bundle, tmp_path):
    data = write_jsonl(tmp_path / "data.jsonl", [{"text": f"a{number}", "label": "b"} for number in range(9)])
    out = tmp_path / "out"
    refused(edgewise("explain", tiny_generator_bundle, "a"), "is a language model", "edgewise chat")
    urls = ("--gateway", "http://127.0.0.1:9", "--cloud", "http://127.0.0.1:9")
    evaluated = edgewise("evaluate", tiny_generator_bundle, *urls, "--data", data, "--out", out)
    refused(evaluated, "is a language model", "edgewise certify --judge")
    said = write_jsonl(tmp_path / "said.jsonl", [{"output": "b", "model": "m", "model_version": "1"}] * 9)
    planned = edgewise(
        "plan", tiny_generator_bundle, "--data", data, "--predictions", said, "--out", out, "--alpha", 0.5
    )
    refused(planned, "is a language model", "edgewise certify BUNDLE --judge")
    assert not out.exists()


@pytest.mark.parametrize("command", ["edge serve", "certify", "chat"])
def test_a_protocol_that_carries_no_prompts_is_refused_at_once(edgewise, tiny_generator_bundle, tmp_path, command):
    data = write_jsonl(tmp_path / "data.jsonl", [{"text": "a"}])
    given = ("--data", data, "--judge", "exact") if command == "certify" else ()
    cloud = ("--cloud", "http://127.0.0.1:9", "--cloud-kind", "oip")
    refused(
        edgewise(*command.split(), tiny_generator_bundle, *cloud, *given),
        "'oip' carries no prompts",
        "Choose --cloud-kind openai",
    )


@pytest.mark.parametrize(
    "command",
    [
        "quantize",
        "pack",
        "certify",
        "explain",
        "evaluate",
        "predict",
        "inspect",
        "verify",
        "doctor",
        "edge serve",
        "cloud serve",
    ],
)
def test_every_help_text_has_an_example(edgewise, command):
    code, out, _ = edgewise(*command.split(), "--help")
    assert code == 0
    assert f"Example: edgewise {command}" in " ".join(out.split())
