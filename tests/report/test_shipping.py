"""What is shipped beside the file: the model card, the manifest, and the CI that holds them together."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper
from PIL import Image

import asvp_export
from asvp_export.environment import tool_version
from asvp_export.onnx_graph.metadata import Provenance, write_provenance
from asvp_export.onnx_graph.passes import without_nodes
from asvp_export.parity.result import ParityResult
from asvp_export.parity.verify import GateResult, ImageScore
from asvp_export.report.card import card, generated_part, write_card
from asvp_export.report.manifest import write_manifest
from asvp_export.signature import SizeRule, ValueRange
from tests.helpers.commands import call, complaint
from tests.helpers.teachers import EXAMPLES, ROOT, arch, save_pictures, weights

CI = EXAMPLES / "ci"
EXPORT = ["--layers=after_body", "--gain=1.003", "--external-data", "--model-card"]


@pytest.fixture(scope="module")
def shipped(tmp_path_factory) -> Path:
    """A folder with one exported file and all that is shipped with it; nothing in it is changed."""
    folder = tmp_path_factory.mktemp("shipped")
    pictures = save_pictures(tmp_path_factory.mktemp("inputs") / "pictures")
    (folder / "README.md").write_text("an older card")
    files = [weights("lowlight"), f"--arch={arch('lowlight')}", f"--images={pictures}", f"--output={folder / 'p.onnx'}"]
    refused = call(*files, *EXPORT)
    assert re.search(r"model card .*README\.md exists; give --force", complaint(refused))
    assert "loading" not in refused.err and (folder / "README.md").read_text() == "an older card"
    done = call(*files, *EXPORT, "--force")
    assert done.code == 0, done.err
    assert [line.split()[-1] for line in done.out.splitlines() if line.startswith(("manifest", "model card"))] == [
        str(folder / "p.manifest.json"), str(folder / "README.md")]  # fmt: skip
    return folder


@pytest.fixture
def folder(shipped, tmp_path) -> Path:
    """A copy, elsewhere, to be changed."""
    return shutil.copytree(shipped, tmp_path / "copy")


def load(path: Path) -> Any:
    return json.loads(path.read_text())


def digest(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def data_file(folder: Path) -> Path:
    return next(folder.glob("p.*.data"))


# The card


def test_the_front_matter_is_what_a_hub_reads_and_leaves_the_licence_to_the_owner(shipped):
    text = (shipped / "README.md").read_text()
    front = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    assert front
    assert yaml.safe_load(front[1]) == {
        "library_name": "onnx", "pipeline_tag": "image-to-image", "license": "other",
        "license_name": "to-be-chosen-by-the-owner", "tags": ["onnx", "onnxruntime", "image-restoration", "asvp"],
    }  # fmt: skip
    assert text.count("OWNER") == 3
    assert text.endswith("-->\n") and not re.search(r"[ \t]$", text, re.MULTILINE)


def test_the_card_shows_what_was_measured_and_nothing_of_the_machine(shipped):
    text, report = (shipped / "README.md").read_text(), load(shipped / "p.report.json")
    for name in ("fidelity", "preservation"):
        gate = report[name]
        psnr = f"{gate['min_psnr']:.2f} dB | {gate['mean_psnr']:.2f} dB | {gate['min_ssim']:.5f}"
        assert re.search(rf"^\| {name} \|.*\| {re.escape(psnr)} \| {gate['threshold']:g} dB \|$", text, re.MULTILINE)
    (layer,) = report["layers"]
    shares = f"{layer['relative_feature_change']:.4f} | {layer['strength']:.4f}"
    assert f"| `after_body` | 1 | 1.003 | 1 | 1 | 1 | {shares} |" in text
    for fact in (report["output_sha256"], report["source_sha256"], "batch x 3 x height x width", "Values 0 (black) to 1",
                 "at least 2 pixels, multiples of 2", "Whole images only", "is as high and wide as the image"):  # fmt: skip
        assert fact in text
    for limit in ("not measured for this file", "Nothing here is cryptography", "delete the node", "normalise",
                  "outputs alone are not hindered"):  # fmt: skip
        assert limit in " ".join(text.split())
    for private in (str(shipped), str(shipped.parent), str(Path.home()), "latency", " ms"):
        assert private not in text


def test_the_code_in_the_card_restores_a_picture_as_the_tool_does(folder):
    stock, native = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert "asvp" not in stock
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (47, 61, 3), np.uint8)).save(folder / "in.png")
    names: dict[str, Any] = {}
    with contextlib.chdir(folder):
        exec(stock, names)
        assert call("run", "p.onnx", "in.png", "-o", "tool.png").code == 0
        written, expected = (np.asarray(Image.open(name), np.int16) for name in ("out.png", "tool.png"))
        assert np.abs(written - expected).max() <= 1  # one way or the other at the rounding to 8 bits
        exec(native, names)
        (again,) = names["session"].run(None, {"input": names["picture"].transpose(2, 0, 1)[None]})
        assert isinstance(names["session"], asvp_export.InferenceSession)
        assert np.abs(again[0, :, :47, :61].transpose(1, 2, 0) - names["restored"]).max() < 1e-4


UNIT, ANY_SIZE = ValueRange(), SizeRule()
GREY = {"grey": ["n", 1, "h", "w"], "le`vel": ["n", 1, 1, 1]}


def plain_result(
    path: Path,
    shapes: dict[str, list[int | str]] = GREY,
    values: ValueRange = UNIT,
    size: SizeRule = ANY_SIZE,
    kind: int = TensorProto.FLOAT,
    **changes: Any,
) -> ParityResult:
    """A file without nodes that adds its inputs up, and the result that its export would give."""
    image, shape = next(iter(shapes.items()))
    inputs = [helper.make_tensor_value_info(name, kind, shape) for name, shape in shapes.items()]
    output = helper.make_tensor_value_info("out", kind, shape)
    graph = helper.make_graph([helper.make_node("Sum", list(shapes), ["out"])], "sum", inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    source = "5" * 64
    write_provenance(model, Provenance(tool_version(), {}, source, values, 1.0, size, image, "out"))
    onnx.save(model, path)
    gate = GateResult(200.0, 200.0, 1.0, 48.0, True, (ImageScore("a.png", "48x64", 1, 200.0, 1.0),))
    made = {"passed": True, "model": "source.pt", "source_sha256": source, "output": path,
            "output_sha256": digest(path.read_bytes())["sha256"], "nodes": {}, "effects": {}, "fidelity": gate,
            "preservation": gate, "latency_ms": (1.0, 1.0)}  # fmt: skip
    return ParityResult(**{**made, **changes})


@pytest.mark.parametrize(
    "size", [SizeRule(), SizeRule(8, 8), SizeRule(24, 4), SizeRule(1, 1, True), SizeRule(64, 8, True)]
)
@pytest.mark.parametrize("low, high", [(0, 1), (0, 255), (-1, 1), (-0.5, 0.5), (0.5, 1.5)])
@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_the_code_in_the_card_meets_every_value_range_size_rule_and_type(kind, low, high, size, tmp_path):
    """By a model that gives back what it is given: float16 moves no pixel by half a step in these ranges."""
    text = card(plain_result(tmp_path / "p.onnx", {"x": ["n", 3, "h", "w"]}, ValueRange(low, high), size, kind))
    pixels = np.random.default_rng(0).integers(0, 256, (21, 30, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in.png")
    names: dict[str, Any] = {}
    with contextlib.chdir(tmp_path):
        exec(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0], names)
    assert names["picture"].shape[:2] == size.fit_both(21, 30)
    np.testing.assert_allclose(names["picture"][:21, :30], low + pixels / 255 * (high - low), rtol=1e-5, atol=1e-6)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out.png")), pixels)


def test_a_card_without_nodes_claims_no_defence_and_its_code_feeds_every_input(tmp_path):
    name = "a b`c|d_e.onnx"
    result = plain_result(tmp_path / name, model="<b>\n---|`.pt")
    text = card(result)
    assert "Nothing in it hinders anyone" in text and "\n- asvp\n" not in text
    assert "Strength" not in text and "Whole images" not in text
    assert "| input, the image | `grey` | n x 1 x h x w | float32 |" in text and "| input | ``le`vel`` |" in text
    assert "| exported from | ``<b>\N{REPLACEMENT CHARACTER}---\\|`.pt``, SHA-256" in text
    assert "# a b\\`c|d\\_e\n" in text
    names: dict[str, Any] = {}
    with contextlib.chdir(tmp_path):
        exec(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0], names)
    assert [one.shape for one in names["outputs"]] == [(1, 1, 64, 64)]
    with pytest.raises(asvp_export.InputError, match="did not pass"):
        write_card(plain_result(tmp_path / name, output=None, passed=False))


# The manifest


def test_the_manifest_is_made_of_the_files_and_of_nothing_else(shipped, tmp_path):
    report = load(shipped / "p.report.json")
    expected = {
        "manifest_version": 1,
        "tool_version": report["tool_version"],
        "source": {"name": "lowlight.safetensors", "sha256": report["source_sha256"]},
        "files": [
            {"role": "model", "name": "p.onnx", **digest((shipped / "p.onnx").read_bytes())},
            {"role": "data", "name": data_file(shipped).name, **digest(data_file(shipped).read_bytes())},
            {"role": "report", "name": "p.report.json", **digest((shipped / "p.report.json").read_bytes())},
            {
                "role": "card",
                "name": "README.md",
                **digest(generated_part((shipped / "README.md").read_bytes()) or b""),
            },
        ],
    }
    assert (shipped / "p.manifest.json").read_text() == json.dumps(expected, indent=2) + "\n"
    assert len(list(shipped.iterdir())) == 5
    elsewhere = tmp_path / "reports" / "q.report.json"
    elsewhere.parent.mkdir()
    elsewhere.write_text("{}")
    written = write_manifest(plain_result(tmp_path / "q.onnx"), report=elsewhere)
    assert written == tmp_path / "q.manifest.json" and [one["name"] for one in load(written)["files"]] == ["q.onnx"]
    assert asvp_export.verify_manifest(tmp_path / "q.onnx").passed
    with pytest.raises(asvp_export.InputError, match="did not pass"):
        write_manifest(plain_result(tmp_path / "q.onnx", output=None))


def test_files_that_moved_together_are_verified(folder):
    answer = call("inspect", "--verify", folder / "p.onnx")
    names = ["p.onnx", data_file(folder).name, "p.report.json", "README.md"]
    assert answer == (0, f"{folder / 'p.onnx'} is as p.manifest.json lists it: {', '.join(names)}\n", "")
    answer = call("inspect", "--verify", folder / "p.onnx", "--json")
    assert json.loads(answer.out) == {"passed": True, "manifest": "p.manifest.json", "files": names, "problems": []}
    assert call("inspect", "--verify", folder / "p.onnx", "--quiet") == (0, "", "")


def test_what_the_owner_writes_into_the_card_is_his(folder):
    path = folder / "README.md"
    text = re.sub(r"license: other.*\nlicense_name.*", "license: apache-2.0", path.read_text())
    path.write_text(re.sub(r"\*OWNER.*?\*\n", "It brightens.\n", text, flags=re.DOTALL) + "\n## Citation\n")
    assert "OWNER: say" not in path.read_text() and "apache-2.0" in path.read_text()
    assert asvp_export.verify_manifest(folder / "p.onnx").passed


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def swap(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) >= 1
    path.write_text(text.replace(old, new, 1))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def reseal(folder: Path) -> None:
    """Whoever can change a file can change the manifest with it: only what the files say of each other is left then."""
    manifest = load(folder / "p.manifest.json")
    for one in manifest["files"]:
        content = (folder / one["name"]).read_bytes()
        one |= digest(generated_part(content) or b"" if one["role"] == "card" else content)
    (folder / "p.manifest.json").write_text(json.dumps(manifest))


def other_report(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        report = load(folder / "p.report.json")
        (folder / "p.report.json").write_text(json.dumps(report | changes))
        reseal(folder)

    return change


def stripped(folder: Path) -> None:
    model = onnx.load(folder / "p.onnx", load_external_data=False)
    bare = without_nodes(model)
    onnx.save(bare, folder / "p.onnx")
    reseal(folder)


def other_gain(folder: Path) -> None:
    """The metadata names a gain that the node does not have."""
    model = onnx.load(folder / "p.onnx", load_external_data=False)
    (entry,) = [one for one in model.metadata_props if one.key == "asvp.layers"]
    assert "1.003" in entry.value
    entry.value = entry.value.replace("1.003", "9.003")
    onnx.save(model, folder / "p.onnx")
    reseal(folder)


def other_source(folder: Path) -> None:
    manifest = load(folder / "p.manifest.json")
    manifest["source"]["sha256"] = "0" * 64
    (folder / "p.manifest.json").write_text(json.dumps(manifest))


def unlisted_data(folder: Path) -> None:
    manifest = load(folder / "p.manifest.json")
    manifest["files"] = [one for one in manifest["files"] if one["role"] != "data"]
    (folder / "p.manifest.json").write_text(json.dumps(manifest))


def no_model(folder: Path) -> None:
    (folder / "p.onnx").write_bytes(b"not an ONNX model")
    reseal(folder)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 9\n"

DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a changed bit of the model": (lambda f: flip(f / "p.onnx"), r"^p\.onnx was changed: its SHA-256 is \w{64}; p\.mani"),
    "a model that was cut": (lambda f: cut(f / "p.onnx"), r"^p\.onnx has \d+ bytes; p\.manifest\.json lists \d+\.$"),
    "no model": (lambda f: (f / "p.onnx").unlink(), r"^p\.onnx is missing"),
    "a folder as the model": (lambda f: ((f / "p.onnx").unlink(), (f / "p.onnx").mkdir()), r"^p\.onnx is missing"),
    "a pointer as the model": (lambda f: (f / "p.onnx").write_text(POINTER), r"^p\.onnx is a pointer of Git LFS"),
    "a changed bit of the data": (lambda f: flip(data_file(f)), r"^p\.\w{16}\.data was changed"),
    "no data": (lambda f: data_file(f).unlink(), r"^p\.\w{16}\.data is missing; p\.manifest\.json lists it as the data"),
    "a changed report": (lambda f: swap(f / "p.report.json", "48.0", "28.0"), r"^p\.report\.json was changed"),
    "no report": (lambda f: (f / "p.report.json").unlink(), r"^p\.report\.json is missing"),
    "a changed number in the card": (lambda f: swap(f / "README.md", "| 48 dB", "| 49 dB"), r"part of README\.md was ch"),
    "a card without its marks": (lambda f: swap(f / "README.md", "asvp-export: end", "end"), r"^README\.md has lost the part"),
    "no card": (lambda f: (f / "README.md").unlink(), r"^README\.md is missing"),
    "a report that failed": (other_report(passed=False), r"^p\.report\.json and p\.onnx disagree on the verdict\.$"),
    "a report of another file": (other_report(output_sha256="0" * 64), "disagree on the model's SHA-256"),
    "a report of other layers": (other_report(layers=[]), "disagree on the layers"),
    "a report of a better gate": (other_report(preservation={"min_psnr": 99.0, "threshold": 48}), "on the gate preservation"),
    "a report that is none": (other_report(layers=3), "disagree on what a report is"),
    "a model without its nodes": (stripped, r"disagree on its ASVP nodes \(after_body\)"),
    "metadata of another gain": (other_gain, r"disagree on its ASVP nodes \(after_body\)"),
    "a manifest of another source": (other_source, "disagree on the source's SHA-256"),
    "data that is not listed": (unlisted_data, r"keeps tensors in p\.\w{16}\.data, which the manifest does not list"),
    "a listed model that is none": (no_model, r"p\.onnx is not an ONNX model"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_what_differs_is_named_and_exits_1(case, folder):
    damage, expected = DAMAGE[case]
    damage(folder)
    answer = call("inspect", "--verify", folder / "p.onnx")
    assert answer.code == 1 and not answer.out
    assert re.search(expected, answer.err), answer.err
    assert all(line.endswith(".") for line in answer.err.splitlines())
    assert (
        json.loads(call("inspect", "--verify", folder / "p.onnx", "--json").out)["problems"] == answer.err.splitlines()
    )


def manifest_with(**changes: Any) -> Callable[[Path], object]:
    return lambda path: path.write_text(json.dumps(load(path) | changes))


def first_file(**changes: Any) -> Callable[[Path], object]:
    """The first listed file, changed; None takes a key out."""

    def change(path: Path) -> None:
        manifest = load(path)
        entry = manifest["files"][0] | changes
        manifest["files"][0] = {key: value for key, value in entry.items() if value is not None}
        path.write_text(json.dumps(manifest))

    return change


def added(**entry: Any) -> Callable[[Path], object]:
    def change(path: Path) -> None:
        manifest = load(path)
        manifest["files"].append({"role": "data", "bytes": 1, "sha256": "0" * 64, **entry})
        path.write_text(json.dumps(manifest))

    return change


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "none": (Path.unlink, r"no p\.manifest\.json beside .*p\.onnx"),
    "text": (lambda path: path.write_text("files: none"), "it is not JSON"),
    "bytes": (lambda path: path.write_bytes(b"\xff\xfe\x00"), "it is not JSON"),
    "an empty file": (lambda path: path.write_bytes(b""), "it is not JSON"),
    "JSON without end": (lambda path: path.write_text("[" * 100_000), "it is not JSON"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "Is a directory"),
    "a list": (lambda path: path.write_text("[]"), "not a manifest that this version reads"),
    "another version": (manifest_with(manifest_version=2), "manifest_version 2, 1 was expected"),
    "no files": (manifest_with(files=[]), "it lists no model"),
    "files that are none": (manifest_with(files=7), "cannot be used"),
    "no source": (manifest_with(source={}), "'sha256' is missing"),
    "another file's": (first_file(name="q.onnx"), r"is of q\.onnx, not of p\.onnx"),
    "a name above": (added(name="../p.onnx"), "'../p.onnx', which is no file of its folder"),
    "a name below": (added(name="sub/p.onnx"), "no file of its folder"),
    "a whole path": (added(name="/etc/passwd"), "no file of its folder"),
    "the folder above": (added(name=".."), "no file of its folder"),
    "no name": (added(name=""), "no file of its folder"),
    "a name of two lines": (added(name="a\nb"), "no file of its folder"),
    "a file twice": (added(name="p.onnx"), "stands in it twice"),
    "two models": (added(name="q.onnx", role="model"), "stands in it twice"),
    "an unknown role": (added(name="q.txt", role="licence"), "knows a role 'licence'"),
    "a hash that is none": (first_file(sha256="0" * 63), "is no SHA-256"),
    "no hash": (first_file(sha256=None), "'sha256' is missing"),
    "a size that is none": (first_file(bytes=-1), "has -1 bytes"),
    "a size that is true": (first_file(bytes=True), "has True bytes"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_manifest_that_cannot_be_used_is_bad_input(case, folder):
    damage, expected = BROKEN[case]
    damage(folder / "p.manifest.json")
    assert re.search(expected, complaint(call("inspect", "--verify", folder / "p.onnx")))


# CI


def action() -> dict[str, Any]:
    return yaml.safe_load((CI / "action.yml").read_text())


def run_step(step: dict[str, Any], folder: Path, path: str = "", **given: str) -> subprocess.CompletedProcess[str]:
    """Run a step of the action as a runner does: its shell, its variables, the files for outputs and the summary."""
    known = {f"inputs.{name}": given.pop(name, one.get("default", "")) for name, one in action()["inputs"].items()}
    assert not given, "an input that the action does not have"
    known["github.action_path"] = str(CI)
    values = {key: re.sub(r"\$\{\{ (.*?) \}\}", lambda m: known[m[1]], text) for key, text in step["env"].items()}
    assert "${{" not in step["run"] and step["shell"] == "bash"
    script = folder / "step.sh"
    script.write_text(step["run"])
    environment = {
        "PATH": path or f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
        "GITHUB_OUTPUT": str(folder / "output"), "GITHUB_STEP_SUMMARY": str(folder / "summary.md"), **values,
    }  # fmt: skip
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", script]
    return subprocess.run(command, cwd=folder, env=os.environ | environment, capture_output=True, text=True)


def test_the_workflow_uses_inputs_and_outputs_that_the_action_has():
    found = action()
    (job,) = yaml.safe_load((CI / "workflow.yml").read_text())["jobs"].values()
    (use,) = [step for step in job["steps"] if step.get("uses", "").split("@")[0].endswith("/examples/ci")]
    required = {name for name, one in found["inputs"].items() if one.get("required")}
    assert required <= set(use["with"]) <= set(found["inputs"])
    outputs = re.findall(r"steps\.parity\.outputs\.([\w-]+)", (CI / "workflow.yml").read_text())
    assert use["id"] == "parity" and outputs and set(outputs) <= set(found["outputs"])
    for one in found["outputs"].values():
        for step, name in re.findall(r"steps\.(\w+)\.outputs\.(\w+)", one["value"]):
            (maker,) = [s for s in found["runs"]["steps"] if s.get("id") == step]
            assert f'echo "{name}=' in maker["run"]


def test_the_action_installs_what_it_is_told_where_the_tool_is_not_there(tmp_path):
    install = action()["runs"]["steps"][0]
    assert run_step(install, tmp_path).returncode == 0, "it is there: nothing is installed"
    recorder = tmp_path / "bin" / "python"
    recorder.parent.mkdir()
    recorder.write_text(f'#!{shutil.which("bash")}\nprintf "%s|" "$@"\necho\n')  # a download of PyTorch is no test
    recorder.chmod(0o755)
    done = run_step(install, tmp_path, path=str(recorder.parent) + ":/usr/bin:/bin", torch="torch --no-deps")
    assert done.stdout.splitlines() == ["-m|pip|install|torch|--no-deps|", f"-m|pip|install|{CI}/../..|"], done.stderr
    assert (CI / "../..").resolve() == ROOT and (ROOT / "setup.py").exists()


@pytest.mark.parametrize(
    "given, code, verdict, told",
    [
        (
            {"options": "--size=48x64\n--device=cpu\n"},
            0,
            "passed",
            ["| fidelity |", "| preservation |", "dB | passed |"],
        ),
        (
            {"options": "--size=48x64", "min-psnr": "150"},
            1,
            "failed",
            ["| 150.0 dB | **failed** |", "do not reach 150 dB"],
        ),
        ({"protected": "$(touch run).onnx"}, 2, "error", ["no $(touch run).manifest.json beside"]),
    ],
)
def test_the_steps_of_the_action_end_as_the_gate_does(given, code, verdict, told, folder, tmp_path_factory):
    pictures = save_pictures(tmp_path_factory.mktemp("few") / "pictures", 1)
    inputs = {
        "protected": "p.onnx",
        "original": str(weights("lowlight")),
        "arch": arch("lowlight"),
        "images": str(pictures),
    }
    done = run_step(action()["runs"]["steps"][1], folder, **(inputs | given))
    assert done.returncode == code, done.stdout + done.stderr
    assert (folder / "output").read_text() == f"verdict={verdict}\n"
    summary = (folder / "summary.md").read_text()
    assert all(text in summary for text in told), summary
    assert (folder / "parity" / "junit.xml").exists() == (folder / "parity" / "p.report.json").exists() == (code < 2)
    assert not (folder / "run").exists(), "a name was run"
    assert asvp_export.verify_manifest(folder / "p.onnx").passed, "the check left what was shipped alone"


def test_the_hook_lets_whole_files_pass_and_stops_changed_ones(folder):
    (hook,) = yaml.safe_load((CI / "pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    for path in folder.iterdir():
        assert re.search(hook["files"], path.name)
    for command in (["init", "-q"], ["add", "."]):
        subprocess.run(["git", *command], cwd=folder, check=True)

    def run() -> subprocess.CompletedProcess[str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}
        return subprocess.run(shlex.split(hook["entry"]), cwd=folder, env=environment, capture_output=True, text=True)

    done = run()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    flip(data_file(folder))
    done = run()
    assert done.returncode == 1 and ".data was changed" in done.stderr
