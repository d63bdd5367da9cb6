"""The report: its statistics against NumPy and the definitions, its page against a browser and hostile names."""

import html.parser
import json
import re
import sys

import numpy as np
import pytest
from chromium import Browser, find
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import golden.commands.report as report_command
from golden.cli import cli
from golden.images import open_images
from golden.report.collect import collect, kinds, losses
from golden.report.page import percent, render
from golden.report.statistics import BINS, Histogram, Noise
from intsim import embedded
from intsim.arithmetic import int64, limits, round_shift
from intsim.engine import Engine
from intsim.errors import UserError
from intsim.operators.base import View
from intsim.oracle import Oracle
from intsim.program_file import load_program, save_program
from intsim.synthetic import Size, random_program

SIZE = Size((8, 8, 3), 4, 4, 12, 3, 20, 4, 3, 4, 3)
HOSTILE = "</script><script>window.bad=1</script><img src=x onerror='window.bad=1'>&\"'"
DTYPES = [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64]


def intsim(*args):
    return CliRunner().invoke(cli, [str(a) for a in args])


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """(Program of three layers, its file, five images in an npz, their pixels)."""
    folder = tmp_path_factory.mktemp("report")
    program = random_program(5, SIZE, extreme=0.2)
    save_program(program, folder / "model.safetensors")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    np.savez(folder / "images.npz", images=pixels, labels=np.arange(5) % 3)
    return load_program(folder / "model.safetensors"), folder / "model.safetensors", folder / "images.npz", pixels


@pytest.fixture(scope="module")
def collected(small):
    program, _, file, _ = small
    return collect(program, open_images(file, program.image), None, no_float="for a test", threads=1)


# Statistics


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_histogram_is_numpys_whatever_the_batches(data):
    dtype = data.draw(st.sampled_from(DTYPES))
    ends = np.iinfo(dtype)
    scale = data.draw(st.integers(0, 62))
    low, high = max(ends.min, -(2**scale)), min(ends.max, 2**scale)
    parts = data.draw(
        st.lists(arrays(dtype, st.integers(1, 30), elements=st.integers(low, high)), min_size=1, max_size=4)
    )
    found = Histogram()
    for part in parts:
        found.add(part)
    whole = np.concatenate(parts)
    assert (found.low, found.high) == (whole.min(), whole.max())
    assert found.zeros == (whole == 0).sum()
    codes = [int(v) >> found.shift for v in whole]
    expected, _ = np.histogram(
        np.array(codes) - found.first, bins=len(found.counts), range=(-0.5, len(found.counts) - 0.5)
    )
    assert found.counts.tolist() == expected.tolist()
    assert found.first == min(codes) and len(found.counts) == max(codes) - min(codes) + 1 <= BINS
    assert found.shift == 0 or (int(whole.max()) >> found.shift - 1) - (int(whole.min()) >> found.shift - 1) >= BINS


def test_noise_is_the_ratio_of_powers():
    rng = np.random.default_rng(1)
    exponents = rng.integers(-9, -3, (1, 6))
    real = rng.normal(0, 4, (3, 20, 6)).astype(np.float32)
    integers = np.rint(np.ldexp(real.astype(np.float64), -exponents)).astype(np.int16)
    plain = Noise(False)
    for i in range(3):
        plain.add(integers[i : i + 1], exponents, real[i : i + 1])
    values = real.astype(np.float64)
    error = values - np.ldexp(integers.astype(np.float64), exponents)
    assert plain.decibels == pytest.approx(10 * np.log10((values**2).sum() / (error**2).sum()), abs=1e-3)

    factor = np.ldexp(1.0, np.arange(6) - 3) * 1.37  # a factor of each state, as r_D is
    scaled = (values / factor).astype(np.float32)
    fitted = Noise(True)
    fitted.add(integers, exponents, scaled)
    assert fitted.decibels == pytest.approx(plain.decibels, abs=0.2)
    wrong = Noise(False)
    wrong.add(integers, exponents, scaled)
    assert wrong.decibels < 5


def test_noise_without_signal_or_error_is_none():
    zeros, exponents = np.zeros((1, 2, 3), dtype=np.int8), np.zeros((1, 3), dtype=np.int64)
    for fitted in (False, True):
        silent = Noise(fitted)
        silent.add(zeros, exponents, zeros.astype(np.float32))
        assert silent.decibels is None
    same = Noise(False)
    same.add(zeros + 3, exponents, zeros.astype(np.float32) + 3)
    assert same.decibels is None


def test_rows_are_those_of_the_definitions(small, collected):
    """Every tensor's histogram, range and zeros, and every requantization's saturation, from the oracle."""
    program, _, _, pixels = small
    data, pictures = collected
    expected = Oracle(program).run(pixels, ["*"])
    for row in data["tensors"]:
        values = int64(expected[row["name"]])
        assert (row["low"], row["high"], row["elements"]) == (values.min(), values.max(), values.size)
        assert row["zeros"] == (values == 0).sum()
        shift, first = row["histogram"]["shift"], row["histogram"]["first"]
        counts = np.bincount(((values >> shift) - first).reshape(-1))
        assert row["histogram"]["counts"] == counts.tolist()
    saturated = {row["name"]: row["saturated"] for row in data["tensors"]}
    some = 0
    for op in program.operators:
        if op.kind not in ("linear", "conv1d", "patch_embed"):
            continue
        acc, shift = int64(expected[op.tensor("acc")]), View(program, op).array("shift")
        parts = op.attributes.get("segments") or [{"port": "out", "start": 0, "stop": len(shift)}]
        for part in parts:
            name, rows = op.tensor(part["port"]), slice(part["start"], part["stop"])
            t = program.tensors[name]
            exact = round_shift(acc[..., rows], shift[rows], program.rounding)
            low, high = limits(t.bits, t.signed)
            assert saturated[name] == ((exact < low) | (exact > high)).sum(), name
            some += saturated[name]
    assert some > 0
    logits = expected["head.out"].reshape(5, -1)
    found = data["images"]["found"]
    assert [row["logits"] for row in found] == logits.tolist()
    assert [row["class"] for row in found] == logits.argmax(axis=1).tolist()
    assert data["images"]["correct"] == (logits.argmax(axis=1) == np.arange(5) % 3).sum()
    assert np.array_equal(pictures, pixels)
    assert sum(row["count"] for row in kinds(data)) == len(program.operators)
    assert all(op["seconds"] >= 0 for op in data["operators"]) and data["timing"]["network_seconds"] > 0


def test_percent_never_rounds_something_to_nothing():
    assert percent(0, 10) == "0 %"
    assert percent(1, 3) == "33.33 %"
    assert percent(1, 10**6) == "0.0001 %"
    assert percent(1, 10**9) == "1e-07 %"
    assert percent(1, 0) == "–"


# The page


class Reader(html.parser.HTMLParser):
    """Elements that are open at the end, ids, scripts, and the text of everything that is shown."""

    VOID = {"meta", "link", "img", "input", "br"}

    def __init__(self, page):
        super().__init__()
        self.open, self.ids, self.scripts, self.addresses, self.handlers, self.text = [], [], 0, [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.scripts += tag == "script"
        self.ids += [values["id"]] if "id" in values else []
        self.addresses += [v for k, v in attributes if k in ("src", "href", "srcset", "action", "data")]
        self.handlers += [k for k in values if k.startswith("on")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)


def test_page_is_whole_and_asks_for_nothing(small, collected):
    data, pictures = collected
    page = render(data, pictures, "intsim report --out x.html").decode()
    read = Reader(page)
    assert read.open == [] and read.scripts == 2 and read.handlers == []
    assert len(read.ids) == len(set(read.ids))
    assert all(a.startswith(("#", "data:")) for a in read.addresses)
    links = {a[1:] for a in read.addresses if a.startswith("#")}
    assert links <= set(read.ids)
    text = " ".join(" ".join(read.text).split())
    for row in data["tensors"]:
        assert f"t-{row['name']}" in read.ids
        ends = dict.fromkeys((row["low"], row["high"]))
        assert " … ".join(f"{end:,}" for end in ends).replace("-", "−") in text
    assert data["program"]["sha256"] in text
    assert "Nothing is compared with float: for a test." in text
    for layer in range(SIZE.depth):
        assert f'class="one-layer" data-layer="layers.{layer}"' in page
    held = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])
    rows = [dict(zip(held["keys"], values, strict=True)) for values in held["tensors"]]
    assert all(row[key] == full[key] for row, full in zip(rows, data["tensors"], strict=True) for key in held["keys"])


def hostile(collected):
    """The data with every text that a file can bring replaced by an attack."""
    data, pictures = collected
    data = json.loads(json.dumps(data).replace("layers.1.", json.dumps(HOSTILE)[1:-1] + "layers.1."))
    data["program"]["name"] = data["program"]["profile"] = HOSTILE
    data["classes"] = [f"{HOSTILE}{i}" for i in range(3)]
    data["provenance"] = {HOSTILE: HOSTILE, "list": [HOSTILE]}
    data["float"]["reason"] = HOSTILE
    data["images"]["source"] = HOSTILE
    data["ablation"] = {"source": HOSTILE, "n": 5, "rows": [{"name": HOSTILE, "top1": 50.0, "agreement": None}]}
    for image in data["images"]["found"]:
        image["name"] = HOSTILE
    data["registers"][0]["register"] = HOSTILE
    return data, pictures


def test_every_text_is_escaped(collected):
    page = render(*hostile(collected), f"intsim report --out {HOSTILE}").decode()
    read = Reader(page)
    assert read.scripts == 2 and read.handlers == [] and read.open == []
    assert HOSTILE not in page
    assert HOSTILE in " ".join(read.text)
    assert [a for a in read.addresses if not a.startswith(("#", "data:"))] == []


def test_a_program_without_images_has_a_page(small):
    program = small[0]
    data, pictures = collect(program, None, None, no_float="no image was run", threads=1)
    read = Reader(render(data, pictures, "intsim report").decode())
    assert read.open == [] and "No image was run" in " ".join(read.text)
    assert all(row["proven"] is not None and row["used"] is None for row in data["tensors"][1:])


# The command


def test_command_writes_page_and_json(small, tmp_path):
    program, model, images, _ = small
    page, found = tmp_path / "r.html", tmp_path / "r.json"
    ablation = tmp_path / "a.json"
    ablation.write_text('{"n": 7, "rows": [{"name": "float", "top1": 50, "agreement": 100.0}]}')
    done = intsim(
        "report", "--model", model, "--images", images, "--count", 2, "--out", page, "--json", found,
        "--ablation", ablation, "--text",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    data = json.loads(found.read_text())
    assert data["program"]["sha256"] == program.digest and data["images"]["count"] == 2
    assert data["float"] == {"used": False, "reason": "no float checkpoint is given (--checkpoint FILE)"}
    assert data["ablation"] == {
        "source": "a.json", "n": 7, "rows": [{"name": "float", "top1": 50.0, "agreement": 100.0}],
    }  # fmt: skip
    assert data["images"]["found"][0]["name"] in page.read_text()
    assert program.digest in done.stdout and "scan.y_acc" in done.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "r.html", "r.json"]


def test_command_refuses(small, tmp_path, monkeypatch):
    _, model, images, _ = small

    def refused(told, *args):
        done = intsim("report", "--model", model, "--images", images, *args)
        assert done.exit_code == 2 and done.stdout == "", done.output
        assert len(done.stderr.splitlines()) == 1 and told in done.stderr, done.stderr
        assert list(tmp_path.glob("*.html")) == []

    out = tmp_path / "r.html"
    refused("nothing to make")
    refused("there is no folder", "--out", tmp_path / "none" / "r.html")
    refused("is a folder", "--out", tmp_path)
    bad = tmp_path / "bad.json"
    good = '{"n": %s, "rows": [{"name": "x", "top1": 1, "agreement": null}]}'
    rows = ('{"rows": []}', '{"rows": [{"name": "x", "top1": 101, "agreement": null}]}')
    for text in (good % "true", good % 0, good % f'"{"A" * 5000}"', "{", "[" * 100_000, "[]", *rows):
        bad.write_text(text)
        refused(str(bad), "--out", out, "--ablation", bad)
    pytest.importorskip("torch")
    refused("65 tokens", "--out", out, "--checkpoint", embedded.checkpoint_path())
    monkeypatch.setitem(sys.modules, "jinja2", None)
    refused("'.[report]'", "--out", out)


def test_provenance_may_hold_anything(small):
    program = small[0]
    for found in (None, 3, "x", [], {"rows": 1}, {"rows": [{}]}, {"rows": [{"name": 1, "top1": "x", "agreement": 1}]}):
        program.provenance["ablation"] = found
        assert report_command.read_ablation(None, program) is None
    program.provenance["ablation"] = {"n": 9, "rows": [{"name": "a", "top1": 1, "agreement": 2}]}
    assert report_command.read_ablation(None, program)["source"] == "the Program"
    del program.provenance["ablation"]
    assert [report_command.numbers(v) for v in (None, "x", ["x"], [1, 0.5])] == [None, None, None, [1, 0.5]]


def test_without_torch_the_reason_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    program = embedded.program()
    assert report_command.open_float(None, program, True) [1].startswith("this needs torch: pip install")
    with pytest.raises(UserError, match="torch"):
        report_command.open_float(embedded.checkpoint_path(), program, True)


# With the float model


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The report of the embedded model on four images: (data, page's file)."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("whole")
    done = intsim("report", "--count", 4, "--out", folder / "r.html", "--json", folder / "r.json")
    assert done.exit_code == 0, done.output
    return json.loads((folder / "r.json").read_text()), folder / "r.html"


def test_a_checkpoint_of_another_network_is_refused(small):
    pytest.importorskip("torch")
    from bitexact.inference import FloatModel
    from bitexact.stages import check_same_network

    model = FloatModel(embedded.checkpoint_path())
    check_same_network(model, embedded.program(), "x")
    with pytest.raises(UserError, match="x: has 12 layers, the Program has 3"):
        check_same_network(model, small[0], "x")
    narrow = random_program(0, Size((32, 32, 3), 8, 8, 8, 12, 8, 2, 2, 4, 3))
    with pytest.raises(UserError, match=r"tokens.out would be \[65, 128\], in the Program it is \[17, 8\]"):
        check_same_network(model, narrow, "x")


def test_float_model_runs_beside(whole):
    from bitexact.inference import FloatModel
    from bitexact.stages import stages

    data, page = whole
    program = embedded.program()
    images = open_images(embedded.images_path(), program.image, classes=program.classes, count=4).stack()
    model = FloatModel(embedded.checkpoint_path(), mean=program.provenance["mean"], std=program.provenance["std"])
    values = {}
    for stage in stages(model, images):
        values.update(stage)
    assert np.allclose(values["head.out"][:, 0], model.classify(images), atol=1e-4)
    rows = {row["name"]: row for row in data["tensors"]}
    made = Engine(program).run(images[:1], ["*"])
    for name in ("layers.0.mixer.scan_b.y", "layers.11.residual.out", "layers.3.mixer.conv1d_b.out", "head.out"):
        real = values[name][:1].astype(np.float64)  # right order of tokens, right scale: they resemble each other
        error = real - np.ldexp(made[name].astype(np.float64), program.exponent_grid(name))
        assert (error**2).sum() < 0.2 * (real**2).sum(), name
        assert rows[name]["sqnr"] > 5
    compared = {row["name"] for row in data["tensors"] if row["sqnr"] is not None}
    outputs = {name for name, t in program.tensors.items() if t.role in ("output", "state")}
    assert len(outputs) > 12 * 25
    assert outputs <= compared
    assert {name for name in compared if rows[name]["fitted"]} == {
        name for name in outputs if re.search(r"(x_proj(_b)?\.[BC]|scan(_b)?\.h)$", name)
    }
    assert data["images"]["agree"] is not None and losses(data)
    assert page.stat().st_size < 5_000_000


# In a browser

needs_browser = pytest.mark.skipif(find() is None, reason="Chromium is not installed")

# texts that stick out of their drawing or lie on each other; elements that stick out of the page and cannot be scrolled
FAULTS = """
(() => {
  const found = [];
  const box = (e) => e.getBoundingClientRect();
  for (const svg of document.querySelectorAll("svg")) {
    const frame = box(svg), texts = [...svg.querySelectorAll("text")].filter((t) => t.textContent.trim());
    texts.forEach((t, i) => {
      const a = box(t);
      if (!a.width) return;
      if (a.left < frame.left - 1 || a.right > frame.right + 1 || a.top < frame.top - 1 || a.bottom > frame.bottom + 1)
        found.push(`outside: ${t.textContent}`);
      for (const other of texts.slice(i + 1)) {
        const b = box(other);
        if (Math.min(a.right, b.right) - Math.max(a.left, b.left) > 2 &&
            Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 5)
          found.push(`over each other: ${t.textContent} / ${other.textContent}`);
      }
    });
  }
  for (const e of document.querySelectorAll("body *")) {
    const a = box(e);
    if (a.width && a.height && (a.right > innerWidth + 1 || a.left < -1) && !e.closest(".scroll, nav ol, .skip"))
      found.push(`cut off: ${e.tagName} ${e.className} ${e.textContent.slice(0, 40)}`);
  }
  if (document.documentElement.scrollWidth > innerWidth) found.push("the page scrolls sideways");
  return found.slice(0, 20);
})()
"""


@pytest.fixture(scope="module")
def browser():
    with Browser() as made:
        yield made


@needs_browser
@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("dark", [False, True])
def test_page_in_a_browser(whole, browser, width, dark):
    data, file = whole
    page = browser.open(file, width, 900, dark)
    assert page.evaluate("document.title") == "vim_cifar10: intsim report"
    assert page.evaluate(FAULTS) == []
    assert page.evaluate("document.querySelectorAll('#tensor-table tbody tr').length") == len(data["tensors"])
    assert page.evaluate("[...document.images].every((i) => i.naturalWidth === 32)")
    assert page.problems == []
    assert page.requests == [file.resolve().as_uri()]
    assert min(page.seconds, browser.open(file, width, 900, dark).seconds) < 2


@needs_browser
def test_page_answers(whole, browser):
    data, file = whole
    page = browser.open(file, 1440, 900)
    js = page.evaluate
    js("document.querySelectorAll('#tensor-table thead button')[7].click()")
    lowest = max((r for r in data["tensors"] if r["saturated"]), key=lambda r: r["saturated"] / r["elements"])
    assert js("document.querySelector('#tensor-table tbody tr').id") == f"t-{lowest['name']}"
    js("(() => { const f = document.getElementById('tensor-find'); f.value = 'layers.3 scan'; "
       "f.dispatchEvent(new Event('input')); })()")  # fmt: skip
    wanted = [r["name"] for r in data["tensors"] if "layers.3" in r["name"] and "scan" in r["name"]]
    assert js("document.querySelectorAll('#tensor-table tbody tr:not([hidden])').length") == len(wanted)
    js("location.hash = '#t-layers.5.mixer.scan.h'")
    js("new Promise((done) => setTimeout(done, 50))")
    row = next(r for r in data["tensors"] if r["name"] == "layers.5.mixer.scan.h")
    shown = js("document.getElementById('detail').textContent")
    assert shown.startswith("layers.5.mixer.scan.h") and f"{row['elements']:,}" in shown
    bars = [c for c in row["histogram"]["counts"] if c]
    assert js("document.querySelectorAll('#detail rect').length") == len(bars)
    js("document.querySelector('a.cell[data-layer=\"layers.7\"]').dispatchEvent(new MouseEvent('click'))")
    assert js("document.querySelector('.one-layer:not([hidden])').dataset.layer") == "layers.7"
    js("document.querySelector('[data-metric=proven]').click()")
    first = next(r for r in data["tensors"] if r["name"] == "layers.0.norm.out")
    assert js("document.querySelector('.heat td').textContent") == str(first["proven"])
    js("document.querySelector('[data-images=wrong]').click()")
    wrong = sum(row["label"] != row["class"] for row in data["images"]["found"])
    assert js("document.querySelectorAll('.card:not([hidden])').length") == wrong
    assert page.problems == []


@needs_browser
def test_hostile_page_runs_nothing(collected, browser, tmp_path):
    file = tmp_path / "r.html"
    file.write_bytes(render(*hostile(collected), HOSTILE))
    page = browser.open(file, 1440, 900)
    assert page.evaluate("window.bad === undefined && document.scripts.length === 2")
    page.evaluate("document.querySelectorAll('#tensor-table tbody tr').forEach((row) => row.click())")
    assert page.evaluate("window.bad === undefined && document.images.length") == len(collected[1])
    assert page.problems == []
    still = browser.open(file, 390, 844, script=False)
    assert still.evaluate("document.querySelectorAll('.card').length") == len(collected[1])
