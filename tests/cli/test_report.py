"""`memcalc report`: the object, the page drawn from it, and the page in a browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
import shutil
import subprocess
from html import escape, unescape
from html.parser import HTMLParser

import pytest

from memcalc.output.report.look import policy, script, style
from memcalc.output.report.page import html
from memcalc.output.report.pictures import figure
from memcalc.output.report.svg import smaller

SETUP = ("gpt2", "--layers", 2, "--gpu", "h100-80gb")
VOID = {"meta", "img", "input", "br", "rect", "link", "hr"}


class Reader(HTMLParser):
    """A page as lists of elements; asserts that every element is closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        for tag in set(self.open):
            self.texts[tag][-1] += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    """One page with every section that one GPU has, and a comparison."""
    from memcalc.__main__ import main

    path = tmp_path_factory.mktemp("report") / "report.html"
    words = [*SETUP, "--micro-batch", "1,4", "--seq", "512,4096", "--price", 2, "-o", path]
    assert main(["report", *map(str, words)]) == 0
    return path.read_text("utf-8")


@pytest.fixture(scope="module")
def read(page) -> Reader:
    return Reader(page)


def embedded(page: str):
    found = re.search(
        r'<script type="application/json" id="memcalc-report">(.*?)</script>', page, re.S
    )
    assert found is not None
    return json.loads(found[1])


# The object


def test_the_object_holds_the_estimate_and_the_ledger_adds_up_to_it(memcalc):
    found = memcalc("report", *SETUP, "--json").json
    alone = memcalc("estimate", *SETUP, "--json").json
    assert found["estimate"]["memory"] == alone["memory"]
    assert found["estimate"]["time"] == alone["time"]
    totals, time = found["ledger"]["totals"], alone["time"]
    assert totals["params"] == alone["model"]["parameters"]
    assert totals["forward_s"] == pytest.approx(time["forward_s"], rel=1e-12)
    assert totals["backward_s"] == pytest.approx(time["backward_s"], rel=1e-12)
    explained = {
        t["name"]: t["value"] for t in memcalc("explain", *SETUP[:3], "--json").json["totals"]
    }
    assert totals["saved_bytes"] == explained["saved for backward"]
    assert totals["forward_flops"] == explained["forward FLOPs"]
    assert totals["backward_flops"] == explained["dgrad FLOPs"] + explained["wgrad FLOPs"]


def test_recomputation_is_a_column_of_its_own_and_no_gpu_leaves_seconds_unknown(memcalc):
    found = memcalc("report", *SETUP, "--recompute", "full", "--json").json
    ledger, time = found["ledger"]["totals"], found["estimate"]["time"]
    assert (
        ledger["recompute_s"] == pytest.approx(time["recompute_s"], rel=1e-12)
        and time["recompute_s"]
    )
    unknown = memcalc("report", "gpt2", "--layers", 2, "--json").json
    assert unknown["ledger"]["totals"]["forward_s"] is None
    assert "roofline" not in unknown["charts"]
    assert (
        unknown["verdict"]["fits"] is None and "no GPU was named" in unknown["verdict"]["headline"]
    )


def test_inputs_tell_what_was_stated_from_defaults(memcalc):
    words = ("--recompute", "full:1", "--grad-clip", "--gpus", 2, "--zero", 1)
    rows = {row["name"]: row for row in memcalc("report", *SETUP, *words, "--json").json["inputs"]}
    assert rows["recomputation"] == {
        "name": "recomputation", "value": "full of 1 blocks", "stated": True,
    }  # fmt: skip
    assert rows["layout"]["stated"] and "zero 1" in rows["layout"]["value"]
    assert rows["--grad-clip"]["value"] == "yes"
    assert not rows["precision"]["stated"] and rows["precision"]["value"] == "bf16-mixed"


def test_the_verdict_says_by_how_much_and_exit_status_is_0_all_the_same(memcalc):
    outcome = memcalc("report", "llama-3.1-8b", "--gpu", "h100-80gb", "--json")
    found = outcome.json
    memory = found["estimate"]["memory"]
    short = -memory["headroom_bytes"] / 2**30
    assert outcome.status == 0 and found["verdict"]["fits"] is False
    assert found["verdict"]["headline"] == f"Does not fit: short by {short:,.2f} GiB"
    assert f"{memory['usable_bytes'] / 2**30:,.2f} GiB usable" in found["verdict"]["detail"]
    assert "H100 SXM 80GB" in found["verdict"]["detail"]
    assert found["estimate"]["advice"]


def test_the_page_is_about_the_first_setup_that_can_be_priced(memcalc):
    found = memcalc("report", "gpt2", "--gpu", "h100", "--gpus", 2, "--layers", 2,
                    "--tp", "7,1", "--json").json  # fmt: skip
    rows = found["comparison"]["rows"]
    assert found["label"] == "tp 1" and found["comparison"]["refused_count"] == 1
    assert [row["reason"] is None for row in rows] == [True, False]
    assert rows[0]["device_used_bytes"] == found["estimate"]["memory"]["device_used_bytes"]


def test_the_command_makes_the_same_page_again(memcalc, tmp_path):
    run = tmp_path / "run.toml"
    memcalc("estimate", *SETUP, "--seq", "512", "--save", run)
    found = memcalc("report", "--config", run, "--setup", "--recompute full", "--json").json
    program, *words = shlex.split(found["command"])
    assert program == "memcalc" and words[-2:] == ["-o", "report.html"]
    assert not any("run.toml" in word for word in words)
    assert memcalc(*words[:-2], "--json").json == found


def test_sources_name_the_datasheet_the_calibration_and_what_is_unverified(memcalc):
    rows = memcalc("report", *SETUP, "--cluster", "dgx-h100", "--json").json["sources"]
    said = {row["what"]: row for row in rows}
    assert "datasheet" in said["H100 SXM 80GB: peak, bf16"]["source"]
    assert said["rates of kernels and links"]["value"] == "default-hopper"
    assert all(row["source"] for row in rows)


# The file


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ((), "-o FILE.html; nearest valid: -o report.html"),
        (("-o", "report.pdf"), "ending in .html or .json; nearest valid: report.html"),
        (("-o", "report"), "nearest valid: report.html"),
        (("-o", "missing/report.html"), "No such file or directory"),
    ],
)
def test_a_bad_file_is_refused_before_anything_is_computed(
    memcalc, tmp_path, monkeypatch, words, wanted
):
    monkeypatch.chdir(tmp_path)
    outcome = memcalc("report", "no-such-model", *words)
    assert outcome.status == 2 and wanted in outcome.error
    assert not list(tmp_path.iterdir())


def test_too_many_setups_name_the_commands_that_take_more(memcalc, tmp_path):
    outcome = memcalc("report", *SETUP, "--seq", "1..500", "-o", tmp_path / "a.html")
    assert outcome.status == 2 and "500 setups" in outcome.error and "compare" in outcome.error


def test_an_empty_list_is_one_line(memcalc, tmp_path):
    outcome = memcalc("report", *SETUP, "--seq", ",", "-o", tmp_path / "a.html")
    assert outcome.status == 2 and "--seq" in outcome.error


def test_json_goes_to_a_file_or_to_stdout(memcalc, tmp_path):
    path = tmp_path / "report.json"
    assert memcalc("report", *SETUP, "-o", path, "-q").err == ""
    found = memcalc("report", *SETUP, "--json").json
    assert {**json.loads(path.read_text()), "command": ""} == {**found, "command": ""}


# The page


def test_the_page_holds_the_object_it_is_drawn_from(memcalc, page):
    words = ("--micro-batch", "1,4", "--seq", "512,4096", "--price", 2)
    assert embedded(page) == memcalc("report", *SETUP, *words, "--json").json


def test_the_same_object_makes_the_same_bytes(page, monkeypatch):
    """Two kinds are drawn anew, as every one takes its time: the one of many axes, the one of many points."""
    found = embedded(page)
    compared = {"finding": found["comparison"]["says"], "object": found["comparison"]}
    for kind, chart in (("timeline", found["charts"]["timeline"]), ("compare", compared)):
        assert figure(kind, chart) in page
    monkeypatch.setattr("memcalc.output.report.page.figure", lambda kind, chart: "")
    assert html(found) == re.sub(r"<figure .*?</figure>\n", "", page, flags=re.S)


def test_the_page_shows_the_exact_numbers(page, read):
    found = embedded(page)
    memory = found["estimate"]["memory"]
    cells = set(read.texts["td"])
    assert {f"{value:,}" for value in memory["breakdown"].values() if value} <= cells
    assert f"{memory['device_used_bytes']:,}" in cells
    shown = read.texts["dd"]
    for key in ("peak_requested_bytes", "peak_allocated_bytes", "peak_reserved_bytes"):
        assert f"{memory[key] / 2**30:,.2f} GiB" in shown
    assert f"{found['estimate']['time']['tokens_per_s']:,.0f}" in shown
    exact = [row.get("data-v") for row in read.all("td")]
    assert {str(row["saved_bytes"]) for row in found["ledger"]["rows"]} <= set(exact)
    compared = [row for row in found["comparison"]["rows"] if row["reason"] is None]
    assert {str(row["device_used_bytes"]) for row in compared} <= set(exact)


def test_nothing_is_loaded_from_elsewhere(page, read):
    for name in ("src", "href", "action", "srcset", "data"):
        for _, attributes in read.elements:
            value = attributes.get(name, "data:")
            assert value.startswith(("data:", "#")), value[:80]
    assert "@import" not in style() and "url(" not in style()
    assert not read.all("link") and not read.all("iframe")
    assert len(page.encode()) < 1_500_000


def test_the_policy_lets_the_pages_own_style_and_script_run_and_nothing_else(page, read):
    (stated,) = (one["content"] for one in read.all("meta") if "http-equiv" in one)
    assert stated == policy() and "unsafe" not in stated and "default-src 'none'" in stated
    for text, kind in ((style(), "style"), (script(), "script")):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in stated and f">{text}</{kind}>" in page
    assert not any("style" in one or "onclick" in one for _, one in read.elements)


def test_headings_tables_and_pictures_can_be_read_without_seeing_them(read):
    levels = [int(tag[1]) for tag, _ in read.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))
    assert len(read.all("table")) == len(read.all("caption"))
    assert all(one["scope"] in ("col", "row") for one in read.all("th"))
    pictures = read.all("img")
    assert len(pictures) >= 6 and all(len(one["alt"]) > 40 for one in pictures)
    assert [one["class"] for one in pictures] == ["on-light", "on-dark"] * (len(pictures) // 2)
    ids = [one["id"] for _, one in read.elements if "id" in one]
    assert len(ids) == len(set(ids))
    named = [one for _, one in read.elements if "aria-labelledby" in one]
    assert named and all(one["aria-labelledby"] in ids for one in named)
    assert all(one["href"][1:] in ids for one in read.all("a"))


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_stands_out_from_its_ground(theme):
    """WCAG 2.2 AA: 4.5 to 1 for text, 3 to 1 for the edges of controls."""
    blocks = re.findall(r":root[^{]*\{([^}]*--card[^}]*)\}", style())
    colours = dict(re.findall(r"--([\w-]+):(#[0-9a-f]{6})", blocks[theme]))
    for ground in ("card", "ground", "soft"):
        for ink in ("text", "muted", "accent", "good", "warn", "bad"):
            assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
    assert contrast(colours["edge"], colours["card"]) >= 3


def contrast(one: str, other: str) -> float:
    def light(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((light(one), light(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_hostile_names_stay_text(memcalc, tmp_path):
    folder = tmp_path / "<img src=x onerror=alert(1)>&<b>"
    folder.mkdir()
    config = {"model_type": "gpt2", "n_embd": 64, "n_head": 4, "n_layer": 2, "vocab_size": 128,
              "n_positions": 128}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    setups = ("--setup", "</script><i>: --seq 64", "--setup", "x: --seq 32")
    found = memcalc("report", folder, *setups, "--gpu", "h100", "--json").json
    found["charts"] = {}
    text = html(found)
    read = Reader(text)
    assert (
        embedded(text) == found
        and found["comparison"]["rows"][0]["labels"]["setup"] == "</script><i>"
    )
    assert not read.all("b") and all(
        tag != "i" or one.keys() <= {"class"} for tag, one in read.elements
    )
    assert [one["class"] for one in read.all("img")] == ["on-light", "on-dark"]
    assert any("onerror" in one for one in read.texts["pre"])
    assert all("onerror" not in one for _, one in read.elements)


# Pictures


def spots_of(path: str) -> list[tuple[float, float]]:
    """Corners of a path of M, L, H, V and z, each letter before its own numbers."""
    found: list[tuple[float, float]] = []
    for letter, rest in re.findall(r"([MLHVz])([^MLHVz]*)", path):
        numbers = [float(one) for one in rest.split()]
        if letter in "ML":
            found.append((numbers[0], numbers[1]))
        elif letter != "z":
            x, y = found[-1]
            found.append((numbers[0], y) if letter == "H" else (x, numbers[0]))
    return found


def test_a_smaller_path_has_the_corners_of_the_long_one():
    corners = [(10.04, 5.0), (10.04, 50.26), (33.3, 50.26), (33.3, 7.77), (60.0, 1.5)]
    between = [(10.04, 20.0), (10.04, 20.0), (20.12, 50.26), (33.3, 20.5)]
    order = [0, *("a", "b"), 1, "c", 2, "d", 3, 4]
    spots = [between["abcd".index(at)] if isinstance(at, str) else corners[at] for at in order]
    strokes = "".join(f"{'L' if n else 'M'} {x:.6f} {y:.6f} \n" for n, (x, y) in enumerate(spots))
    back = [(10.04, 40.0), (10.04, 20.0)]
    turned = "M 10.04 10.0 \nL " + " \nL ".join(f"{x} {y}" for x, y in back) + " \n"
    svg = f'<?xml?><svg viewBox="0 0 1 1"><path d="{strokes}z\n"/> <path d="{turned}"/></svg>'
    first, second = re.findall(r' d="([^"]*)"', smaller(svg))
    assert first.endswith("z") and not second.endswith("z")
    assert spots_of(first) == [(round(x, 1), round(y, 1)) for x, y in corners]
    assert spots_of(second) == [(10.0, 10.0), (10.0, 40.0), (10.0, 20.0)], "a way back is kept"


def test_letters_of_a_path_keep_their_own_units():
    curve = "M 1716 666 \nQ 2156 666 2409 954 \nz\n"
    assert ' d="M1716 666Q2156 666 2409 954z"' in smaller(f'<svg><path d="{curve}"/></svg>')


def test_a_picture_of_thousands_of_marks_becomes_a_png(monkeypatch):
    from memcalc.output.report import pictures

    monkeypatch.setattr(pictures, "_LARGE", 1000)
    made = breakdown_figure()
    assert made.count("data:image/png;base64,iVBOR") == 2 and "data:image/svg" not in made
    for width, height in re.findall(r'width="(\d+)" height="(\d+)"', made):
        assert 600 < int(width) < 800 and 150 < int(height) < 800


def breakdown_figure() -> str:
    from memcalc.cli.charts.breakdown import found
    from memcalc.cli.parse import Arguments

    words = Arguments("chart", ["breakdown", "gpt2"], {"layers": "2", "gpu": "h100"})
    return figure("breakdown", {"finding": "what it shows", "object": found(words)})


# The page in a browser

CHECKS = """
addEventListener("load", async () => {
  const texts = (table, at) => [...document.querySelectorAll(`#${table} tbody tr`)].map(
    (row) => row.cells[at].dataset.v ?? row.cells[at].textContent);
  const head = (table, at) => document.querySelectorAll(`#${table} thead th`)[at];
  const found = { violations: violations.length };
  const toggle = document.getElementById("theme");
  const shade = () => getComputedStyle(document.body).backgroundColor;
  const seen = (theme) => [...document.querySelectorAll(`img.on-${theme}`)].filter(
    (one) => one.getClientRects().length).length;
  found.themes = [];
  for (let turn = 0; turn < 3; turn++) {
    found.themes.push([shade(), seen("light"), seen("dark"), toggle.textContent]);
    toggle.click();
  }
  found.order = texts("ledger", 0);
  found.sorted = [];
  [...head("ledger", 0).parentElement.cells].forEach((cell, at) => {
    for (let turn = 0; turn < 2; turn++) {
      cell.querySelector("button").click();
      found.sorted.push({at, number: cell.classList.contains("n"), order: cell.ariaSort,
        keys: texts("ledger", at), others: document.querySelectorAll("#ledger [aria-sort]").length});
    }
  });
  const button = head("ledger", 0).querySelector("button");
  button.focus();
  found.focused = document.activeElement === button;
  const field = document.querySelector("input[data-filters=ledger]");
  field.value = "ATTENTION";
  field.dispatchEvent(new Event("input"));
  found.filtered = [...document.querySelectorAll("#ledger tbody tr")].filter((row) => !row.hidden)
    .map((row) => row.textContent.includes("attention"));
  found.shown = [document.querySelector("button[data-copies]").hidden, field.parentElement.hidden];
  found.width = [innerWidth, document.documentElement.scrollWidth];
  found.broken = [...document.images].filter((one) => !one.complete || !one.naturalWidth).length;
  found.loaded = performance.getEntriesByType("resource").map((one) => one.name)
    .filter((name) => !name.startsWith("data:"));
  parent.postMessage(JSON.stringify(found), "*");
});
"""
FRAME = """<!DOCTYPE html><pre id="said"></pre><script>
addEventListener("message", (event) => { document.getElementById("said").textContent = event.data; });
</script><iframe src="page.html" style="width:360px;height:740px;border:0"></iframe>"""


def dumped(browser: str, path, folder, *more: str) -> str:
    """The document after its scripts have run."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--disable-sync",
             "--virtual-time-budget=8000", f"--user-data-dir={folder / 'profile'}", "--dump-dom"]  # fmt: skip
    done = subprocess.run(
        [browser, *flags, *more, path.as_uri()], capture_output=True, text=True, timeout=120
    )
    return done.stdout


@pytest.fixture(scope="module")
def browser() -> str:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium or Chrome is installed")
    return found


@pytest.fixture(scope="module")
def told(browser, page, tmp_path_factory):
    """What the page's own script did in a frame as wide as a phone, as checks beside it saw it."""
    folder = tmp_path_factory.mktemp("browser")
    allowed = re.sub(r"script-src '[^']*'", "script-src 'unsafe-inline'", unescape(policy()))
    watch = "<script>const violations = []; addEventListener('securitypolicyviolation', (one) => " \
        "violations.push(one.violatedDirective));</script>"  # fmt: skip
    copy = page.replace(escape(policy()), escape(allowed)).replace("<style>", f"{watch}<style>", 1)
    assert allowed != policy() and copy != page
    (folder / "page.html").write_text(copy.replace("</body>", f"<script>{CHECKS}</script></body>"))
    (folder / "frame.html").write_text(FRAME)
    text = dumped(browser, folder / "frame.html", folder)
    found = re.search(r'<pre id="said">(.*?)</pre>', text, re.S)
    assert found is not None and found[1], text[-500:]
    return json.loads(unescape(found[1]))


def test_the_script_runs_under_the_pages_own_policy(browser, page, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(page, "utf-8")
    text = dumped(browser, path, tmp_path)
    assert 'class="sorts"' in text and 'class="sorts"' not in page
    theme = re.search(r'<button[^>]*id="theme"[^>]*>(\w+)<', text)
    assert theme is not None and "hidden" not in theme[0]


def test_every_column_of_the_ledger_sorts_both_ways_by_exact_numbers(told, page):
    rows = embedded(page)["ledger"]["rows"]
    assert told["order"] == [row["op"] for row in rows]
    assert len(told["sorted"]) >= 2 * 10
    for one in told["sorted"]:
        keys = [key for key in one["keys"] if key != "–"]
        assert one["others"] == 1 and len(one["keys"]) == len(rows)
        assert one["keys"] == keys + ["–"] * (len(rows) - len(keys)), "what is unknown comes last"
        if one["number"]:
            found = [float(key) for key in keys]
            assert found == sorted(found, reverse=one["order"] == "descending")
        elif one["at"] == 0:
            assert keys == sorted(keys, reverse=one["order"] == "descending")
    orders = [one["order"] for one in told["sorted"]]
    assert orders.count("ascending") == orders.count("descending")


def test_theme_filter_and_copy_work(told):
    first, second, third = told["themes"]
    assert first == third != second
    assert {first[3], second[3]} == {"Light", "Dark"}
    assert sorted(bool(count) for count in first[1:3]) == [False, True]
    assert first[1:3] == second[2:0:-1]
    assert told["focused"] and told["shown"] == [False, False]
    assert told["filtered"] and all(told["filtered"])


def test_a_phone_needs_no_sideways_scroll_and_nothing_is_fetched(told):
    assert told["width"][0] == 360 and told["width"][1] <= 360
    assert told["violations"] == 0 and told["broken"] == 0 and told["loaded"] == []
