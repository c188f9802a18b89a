"""The viewer in a real browser: what is seen, heard and asked for, by whom, how wide, and how fast."""

import os
import re
import statistics
import time
from io import BytesIO

import numpy as np
import pydicom
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import expect
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from skimage import data

from demo import answers, cases, export, maps, upload
from demo.disk import Disk
from demo.page import NOT_CLINICAL
from tests.made_world import ROOT

SAYS = re.compile(r"estimated chance|Reference label|lanted in this|person|NORMAL|lobar|answer flips|of 100 test")
PAGES = ("", "cases", "policy", "evidence", "upload")
SHOTS = ROOT / "demo_export/screenshots"
FAST = 0.3  # seconds, the median of an interaction on the results of `make repro`


def case(app, *, deferred):
    """The number of the first case of the random queue that is deferred, or is not."""
    table = cases.collect(Disk(app.root)).table
    return int(table.index[table["deferred"] == deferred][0])


def settled(page):
    """Wait until the script behind the page has run, and what it wrote is drawn."""
    page.wait_for_function("document.querySelector('[data-test-script-state=notRunning]') !== null")
    page.wait_for_function("document.querySelector('[data-stale=true], [data-testid=stSkeleton]') === null")
    page.wait_for_timeout(400)


def open_case(opened, app, number, **options):
    """A page of its own on a case."""
    page = opened(f"{app.url}/cases?case={number}", **options)
    page.get_by_role("heading", name=f"Case {number}", exact=True).wait_for()
    film(page).wait_for()
    settled(page)
    return page


def film(page):
    """The image that is looked at."""
    return page.locator(".film .glass")


def looked(page):
    """How it is looked at: window, level and zoom as the film says them, and whether it is inverted."""
    words = page.locator(".film .levels").inner_text()
    window, level, zoom = (float(number) for number in re.findall(r"[\d.]+", words))
    inverted = page.locator(".film feFuncR").get_attribute("slope").startswith("-")
    return window, level, zoom, inverted


AS_OPENED = (255.0, 128.0, 1.0, False)


def reveal(page, answer="Reveal without a reading"):
    page.get_by_role("button", name=answer, exact=False).first.click()
    page.get_by_text("Your own reading: ").wait_for()
    settled(page)


def told(page):
    """Everything that a reader could find: text, title, address, text alternatives and labels, and what was sent."""
    seen = page.evaluate(
        "[document.body.innerText, document.title, location.href, ...[...document.querySelectorAll('*')].flatMap("
        "e => ['alt', 'title', 'aria-label', 'src', 'download'].map(name => e.getAttribute(name) ?? ''))].join('\\n')"
    )
    frames = b"\n".join(frame if isinstance(frame, bytes) else frame.encode() for frame in page.heard)
    return f"{seen}\n{' '.join(page.asked)}\n{frames.decode('utf-8', errors='ignore')}"


def overflows(page):
    return page.evaluate(
        "Math.max(0, ...[document.documentElement, ...document.querySelectorAll('[data-testid=stMain]')]"
        ".map(e => e.scrollWidth - e.clientWidth))"
    )


def serious(page):
    """What axe finds that keeps people out."""
    found = Axe().run(page).response["violations"]
    return [
        (each["id"], [node["html"] for node in each["nodes"]][:3])
        for each in found
        if each["impact"] in ("serious", "critical")
    ]


def test_it_starts_in_time_without_torch_and_asks_nobody_else(app, opened):
    page = opened(app.url)
    settled(page)
    assert page.get_by_role("heading", name="When should I use this?").is_visible()
    assert app.seconds() < 5
    assert not app.holds("libtorch")
    for path in PAGES[1:]:
        page.get_by_role("link", name=path.capitalize(), exact=True).first.click()
        page.get_by_role("heading", name="Case 1" if path == "cases" else path.capitalize(), exact=True).wait_for()
        settled(page)
        assert page.get_by_text(NOT_CLINICAL).is_visible()
    hosts = {re.match(r"\w+:(//[^/]*)?", url).group() for url in page.asked}
    assert hosts <= {app.url, f"ws://localhost:{app.port}", "data:", "blob:"}


def test_before_the_reveal_nothing_gives_a_case_away(app, opened):
    page = opened(f"{app.url}/cases")
    for number in range(1, 6):
        page.get_by_role("heading", name=f"Case {number}", exact=True).wait_for()
        settled(page)
        assert not SAYS.search(told(page))
        assert page.get_by_role("img", name="Chest radiograph").count() == 1
        assert page.get_by_role("slider").count() == 0  # no map, and nothing that an arrow key could move
        page.get_by_role("button", name="Next").click()
    assert not any(
        re.search(r"/media/[0-9a-f]+\.png$", url) for url in page.asked
    )  # images come with the page, nothing is fetched ahead


def test_a_deferred_case_gives_nothing_away_to_who_has_not_read_it(app, opened):
    page = open_case(opened, app, case(app, deferred=True))
    reveal(page)
    assert page.get_by_text(answers.DEFERRED).is_visible()
    assert not SAYS.search(told(page))
    assert page.locator(".film .opacity").count() == 0


def test_who_has_read_a_deferred_case_learns_what_was_withheld_on_demand(app, opened):
    page = open_case(opened, app, case(app, deferred=True))
    reveal(page, "No pneumonia")
    assert page.get_by_text(answers.DEFERRED).is_visible()
    page.get_by_text("What it would have said").click()
    page.get_by_text("Had it decided: ").wait_for()
    assert page.get_by_text("Reference label").is_visible()


def test_a_film_is_windowed_zoomed_and_panned_by_mouse_and_starts_anew_with_each_case(app, opened):
    number = case(app, deferred=False)
    page = open_case(opened, app, number)
    assert looked(page) == AS_OPENED
    box = film(page).bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - 100, y - 50, steps=4)
    page.mouse.up()
    window, level, zoom, _ = looked(page)
    assert window < 255  # across: a narrower window
    assert level > 128  # up: a higher level, a darker image
    assert zoom == 1
    page.mouse.wheel(0, -400)
    assert looked(page)[2] > 2
    before = page.locator(".film .layers").get_attribute("style")
    page.mouse.down(button="right")
    page.mouse.move(x - 60, y - 20, steps=4)
    page.mouse.up(button="right")
    assert page.locator(".film .layers").get_attribute("style") != before
    assert looked(page)[:2] == (window, level)  # the other button only pans
    page.get_by_role("button", name="Invert").click()
    kept = looked(page)
    assert kept[3]
    reveal(page)
    assert looked(page) == kept  # the reveal changes nothing of how it is looked at
    page.get_by_role("button", name="Reset", exact=True).click()
    assert looked(page) == AS_OPENED
    page.keyboard.press("i")
    page.get_by_role("button", name="Next").click()
    page.get_by_role("heading", name=f"Case {number + 1}", exact=True).wait_for()
    settled(page)
    assert looked(page) == AS_OPENED


def pixel(page, x, y):
    """The grey level that is drawn at a place of the film, from its upper left."""
    box = film(page).bounding_box()
    shot = Image.open(BytesIO(page.screenshot(clip={"x": box["x"] + x, "y": box["y"] + y, "width": 1, "height": 1})))
    return shot.convert("L").getpixel((0, 0))


def test_window_level_and_inversion_are_what_is_drawn(app, opened):
    page = open_case(opened, app, 1)
    plain = pixel(page, 200, 150)
    page.keyboard.press("i")
    assert pixel(page, 200, 150) == pytest.approx(255 - plain, abs=2)
    page.keyboard.press("i")
    for _ in range(4):
        page.keyboard.press("Shift+ArrowLeft")
    for _ in range(2):
        page.keyboard.press("Shift+ArrowUp")
    window, level = 255 - 4 * 16, 127.5 + 2 * 8
    assert looked(page)[0] == window
    expected = 255 * ((plain - level) / window + 0.5)
    assert pixel(page, 200, 150) == pytest.approx(min(255, max(0, expected)), abs=3)


def test_the_patients_other_images_are_a_click_away(app, opened):
    known = cases.collect(Disk(app.root))
    number = next(n for n in known.table.index if cases.others(known, n))
    page = open_case(opened, app, number)
    first = page.locator(".film .image").get_attribute("src")
    page.get_by_role("button", name="Other image 1 of this patient").click()
    assert page.locator(".film .image").get_attribute("src") != first
    assert "Another image of the patient" in film(page).get_attribute("aria-label")
    page.keyboard.press("o")
    assert page.locator(".film .image").get_attribute("src") == first


def test_a_decided_case_shows_one_map_that_is_off_at_first_where_it_is_no_use(app, opened):
    known, number = cases.collect(Disk(app.root)), case(app, deferred=False)
    overlay = maps.first(maps.overlays(known, number))
    page = open_case(opened, app, number)
    reveal(page)
    assert page.get_by_text(overlay.verdict).is_visible()
    slider, drawn = page.get_by_role("slider", name="Opacity of the map"), page.locator(".film .map")
    assert drawn.is_visible() == overlay.usable
    page.keyboard.press("m")
    assert drawn.is_visible() != overlay.usable
    slider.fill("80")
    assert drawn.evaluate("e => getComputedStyle(e).opacity") == "0.8"
    assert "A map shows where the model looked, not where disease is." in film(page).get_attribute("aria-label")
    assert page.get_by_role("img", name="Map of an untrained").count() == 0
    page.get_by_text("Maps of every network").click()
    page.get_by_role("img", name="Map of an untrained densenet121").wait_for()


def test_the_keyboard_alone_is_enough_and_moves_no_slider_by_accident(app, opened):
    number = case(app, deferred=False)
    page = open_case(opened, app, number)
    page.keyboard.press("ArrowRight")
    page.get_by_role("heading", name=f"Case {number + 1}", exact=True).wait_for()
    page.keyboard.press("ArrowLeft")
    page.get_by_role("heading", name=f"Case {number}", exact=True).wait_for()
    settled(page)
    page.keyboard.press("1")
    page.get_by_text("Your own reading: pneumonia.").wait_for()
    settled(page)
    slider = page.get_by_role("slider", name="Opacity of the map")
    box = slider.bounding_box()
    page.mouse.click(box["x"] + 0.6 * box["width"], box["y"] + box["height"] / 2)
    moved = slider.input_value()
    assert int(moved) > 0
    page.keyboard.press("ArrowRight")  # turns the page, since a click leaves the slider without the focus
    page.get_by_role("heading", name=f"Case {number + 1}", exact=True).wait_for()
    page.keyboard.press("ArrowLeft")
    page.get_by_role("heading", name=f"Case {number}", exact=True).wait_for()
    settled(page)
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.type") == "range":
            break
    before = slider.input_value()
    page.keyboard.press("ArrowRight")  # whoever has walked there means the slider, and stays on the page
    assert int(slider.input_value()) == int(before) + 5
    page.wait_for_timeout(500)
    assert page.get_by_role("heading", name=f"Case {number}", exact=True).is_visible()


def test_what_is_typed_into_a_field_is_no_command(app, opened):
    page = open_case(opened, app, 3)
    page.get_by_role("button", name="Which patients").click()
    page.get_by_label("Case number").press_sequentially("12")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Case 12", exact=True).wait_for()
    settled(page)
    assert page.get_by_text("Your own reading: ").count() == 0
    assert looked(page) == AS_OPENED


def test_a_refresh_and_other_pages_lose_nothing(app, opened):
    page = open_case(opened, app, case(app, deferred=False))
    reveal(page, "Pneumonia")
    tally = page.get_by_text("You against the model").inner_text()

    def same():
        page.get_by_text("Your own reading: pneumonia.").wait_for()
        settled(page)
        assert page.get_by_text("You against the model").inner_text() == tally

    page.reload()
    same()
    page.get_by_role("link", name="Policy", exact=True).first.click()
    page.get_by_role("heading", name="Policy", exact=True).wait_for()
    settled(page)
    page.reload()
    page.get_by_role("heading", name="Policy", exact=True).wait_for()
    settled(page)
    page.get_by_role("link", name="Cases", exact=True).first.click()
    film(page).wait_for()
    settled(page)
    same()


@pytest.mark.parametrize(("width", "colours"), [(1280, "light"), (390, "dark"), (1280, "dark"), (390, "light")])
def test_every_page_is_accessible_and_as_wide_as_the_screen(app, opened, width, colours):
    for path in PAGES:
        page = opened(f"{app.url}/{path}", width=width, colours=colours)
        settled(page)
        ground = page.locator("[data-testid=stApp]").evaluate("e => getComputedStyle(e).backgroundColor")
        assert (int(re.search(r"\d+", ground).group()) < 128) == (colours == "dark")
        assert overflows(page) == 0, path
        assert serious(page) == [], path
        page.context.close()


@pytest.mark.parametrize(("width", "colours"), [(1280, "light"), (390, "dark")])
def test_an_answer_is_accessible_and_as_wide_as_the_screen(app, opened, width, colours):
    for deferred in (False, True):
        page = open_case(opened, app, case(app, deferred=deferred), width=width, colours=colours)
        reveal(page, "I cannot tell")
        assert page.locator("[data-testid=stMain]").evaluate("e => e.scrollHeight") < 3000  # of once 7,810 at 390
        page.get_by_text("Mouse and keys").click()
        if deferred:
            page.get_by_text("What it would have said").click()
        else:
            page.get_by_text("Maps of every network").click()
            page.get_by_text("How sure, and why").click()
            page.get_by_role("heading", name="Nearest training cases").wait_for()
        settled(page)
        assert overflows(page) == 0
        assert serious(page) == []


def test_the_policy_follows_its_sliders(app, opened):
    page = opened(f"{app.url}/policy")
    settled(page)
    before = page.locator("body").inner_text()
    page.get_by_role("slider", name="Certainty").focus()
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    page.get_by_text("dvc exp run -S deferral.threshold=0.9", exact=True).wait_for()
    settled(page)
    after = page.locator("body").inner_text()
    pattern = re.compile(r"Coverage ([\d.]+)%")
    assert float(pattern.search(after).group(1)) < float(pattern.search(before).group(1))


def png(pixels):
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def huge():
    """A PNG that says it has 50,000 x 50,000 pixels."""
    import zlib

    head = bytearray(png(np.zeros((64, 64), np.uint8)))
    head[16:24] = (50_000).to_bytes(4, "big") * 2
    head[29:33] = zlib.crc32(bytes(head[12:29])).to_bytes(4, "big")
    return bytes(head)


def no_pixels():
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", "1.2.3"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = BytesIO()
    pydicom.dcmwrite(buffer, FileDataset("x", {}, file_meta=meta, preamble=b"\0" * 128), enforce_file_format=True)
    return buffer.getvalue()


def test_bad_uploads_get_a_sentence(app, opened):
    page = opened(f"{app.url}/upload")
    settled(page)
    bad = {
        "cut.png": (
            png(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8))[:2000],
            "damaged, cut short",
        ),
        "huge.png": (huge(), "million"),
        "text.png": (b"hello", "no PNG, JPEG or DICOM file"),
        "none.dcm": (no_pixels(), "holds no image"),
        "empty.png": (b"", "empty"),
    }
    for name, (content, sentence) in bad.items():
        page.locator("input[type=file]").set_input_files({"name": name, "mimeType": "image/png", "buffer": content})
        page.get_by_test_id("stAlert").get_by_text(sentence).wait_for()
        assert "Traceback" not in page.locator("body").inner_text()
    assert not app.holds("libtorch")


def test_the_static_pages_work_from_a_folder(app, opened, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "FIRST", 4)
    monkeypatch.setattr(export, "OF_A_KIND", 1)
    known = cases.collect(Disk(app.root))
    for name, text in export.written(known).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    wrong = []
    for width, colours in ((1280, "light"), (390, "dark")):
        page = opened(f"file://{tmp_path}/index.html", width=width, colours=colours)
        page.on("console", lambda message: wrong.append(message.text))
        number = case(app, deferred=False)
        for name in ("index", "kinds", "policy", "evidence", "case-1", f"answer-{number}"):
            page.goto(f"file://{tmp_path}/{name}.html")
            assert overflows(page) == 0, name
            assert serious(page) == [], name
    page.get_by_role("slider", name="Opacity of the map").fill("100")
    assert page.locator(".film .map").evaluate("e => getComputedStyle(e).opacity") == "1"
    page.goto(f"file://{tmp_path}/case-1.html")
    page.keyboard.press("i")
    page.keyboard.press("+")
    assert looked(page) == (255, 128, 1.3, True) or looked(page) == (255, 128, 1.2, True)
    page.keyboard.press("ArrowRight")
    page.get_by_role("heading", name="Case 2", exact=True).wait_for()
    assert not wrong
    assert {url.split(":")[0] for url in page.asked} <= {"file", "data"}


@pytest.mark.skipif(not (ROOT / "data/ensemble/policy.json").exists(), reason="needs a run: `make repro`")
def test_a_photograph_of_a_cat_is_not_diagnosed_and_a_radiograph_is_read():
    disk = Disk(ROOT)
    system, known = upload.load(disk), cases.collect(disk)
    _, (refused,), overlays = upload.judge(system, known, upload.read(png(data.chelsea())))
    assert refused.lines[0] == f"**{upload.REFUSED}**"
    assert not SAYS.search(" ".join(refused.lines))
    assert not overlays
    for number, case in known.table.iloc[:3].iterrows():
        _, (section,), overlays = upload.judge(system, known, cases.image(known, number))
        said = " ".join(section.lines)
        if case["out_of_distribution"]:
            assert upload.REFUSED in said
        elif case["deferred"]:
            assert answers.DEFERRED in said
        else:
            assert f"estimated chance {cases.chance(case['y_prob'])}" in said
            assert [overlay.member for overlay in overlays] == known.members


def seconds(act, done):
    """How long it takes until what an act asks for is there."""
    start = time.perf_counter()
    act()
    done()
    return time.perf_counter() - start


def wants_an_idle_machine():
    if os.getloadavg()[0] > os.cpu_count():
        pytest.skip(f"wants an idle machine: the load is {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")


def test_every_interaction_is_fast_on_the_run_of_this_repository(run_app, opened):
    """Median of several; what the film does is drawn in the browser, an upload may take longer."""
    wants_an_idle_machine()
    known = cases.collect(Disk(ROOT))
    decided = [int(n) for n in known.table.index[~known.table["deferred"]][:8]]
    page = open_case(opened, run_app, 1)
    took = {}

    def measure(name, act, done):
        took.setdefault(name, []).append(seconds(act, done))
        settled(page)

    def headed(number):
        return page.get_by_role("heading", name=f"Case {number}", exact=True).wait_for

    for number in range(2, 8):
        measure("next case", lambda: page.keyboard.press("ArrowRight"), headed(number))
    slider, drawn = page.get_by_role("slider", name="Opacity of the map"), page.locator(".film .map")
    closer = page.locator(".film .levels")
    for number in decided:
        page.goto(f"{run_app.url}/cases?case={number}")
        film(page).wait_for()
        settled(page)
        answer = page.get_by_text("Reference label").wait_for
        measure("reveal", lambda: page.keyboard.press("2"), answer)
        measure("opacity", lambda: slider.fill("70"), lambda: expect(drawn).to_have_css("opacity", "0.7"))
        measure(
            "invert",
            lambda: page.keyboard.press("i"),
            lambda: page.locator("[slope='-1']").first.wait_for(state="attached"),
        )
        measure(
            "window", lambda: page.keyboard.press("Shift+ArrowLeft"), lambda: expect(closer).to_contain_text("W 239")
        )
        box = film(page).bounding_box()
        page.mouse.move(box["x"] + 50, box["y"] + 50)
        measure("wheel", lambda: page.mouse.wheel(0, -100), lambda: expect(closer).not_to_contain_text("1.0×"))
        details = page.get_by_role("heading", name="Nearest training cases").wait_for
        measure("details", lambda: page.get_by_text("How sure, and why").click(), details)
        untrained = page.get_by_role("img", name="Map of an untrained").first.wait_for
        measure("all maps", lambda: page.get_by_text("Maps of every network").click(), untrained)
    for _ in range(3):
        for name, heading in (("Policy", "Policy"), ("Evidence", "Evidence"), ("Start", "When should I use this?")):
            there = page.get_by_role("heading", name=heading, exact=True).wait_for
            measure(name, lambda name=name: page.get_by_role("link", name=name, exact=True).first.click(), there)
    page.goto(f"{run_app.url}/policy")
    settled(page)
    threshold, said = page.get_by_role("slider", name="Certainty"), page.get_by_text(re.compile(r"^Coverage"))
    for key in ("End", "Home") * 3:
        threshold.focus()
        before = said.inner_text()
        measure(
            "policy knob",
            lambda key=key: page.keyboard.press(key),
            lambda before=before: expect(said).not_to_have_text(before),
        )
    medians = {name: round(statistics.median(times), 3) for name, times in took.items()}
    print(medians)
    assert {name: median for name, median in medians.items() if median >= FAST} == {}


def test_a_first_upload_takes_less_than_ten_seconds(run_app, opened):
    wants_an_idle_machine()
    known = cases.collect(Disk(ROOT))
    page = opened(f"{run_app.url}/upload")
    settled(page)
    given = {"name": "a.png", "mimeType": "image/png", "buffer": png(cases.image(known, 3))}
    took = seconds(lambda: page.locator("input[type=file]").set_input_files(given), film(page).wait_for)
    print(f"first upload: {took:.1f} s")
    assert took < 10
    assert page.get_by_role("heading", name=re.compile("The system's answer|The system gives no answer")).is_visible()
    assert serious(page) == []


def vignettes(known):
    """A case of each of five kinds that a reader must be able to act on."""
    table, decided = known.table, ~known.table["deferred"]
    strange = table["out_of_distribution"].astype(bool)
    train = known.everything[known.everything["split"] == "train"]["finding"].value_counts(normalize=True)
    rare = table["finding"].map(train).fillna(0) < answers.RARE
    flipped = table["cause"] == "mislabelled"
    return {
        "right": table.index[decided & ~table["wrong"] & (table["y_true"] == 1)][0],
        "wrong": table["certainty"].where(decided & table["wrong"] & ~rare & ~flipped).idxmax(),
        "doubt": table.index[~decided & ~strange][0],
        "unlike": table.index[~decided & strange][0],
        "rare": table.index[decided & rare & (table["finding"] != "none")][0],
    }


SAYS_NEXT = {
    "right": "go by your own reading|may stand",
    "wrong": "go by your own reading|may stand",
    "doubt": "read it yourself",
    "unlike": "make sure that this is the kind of image",
    "rare": "It cannot rule out findings that it was never taught",
}


@pytest.mark.parametrize(("width", "colours", "height"), [(1280, "light", 1080), (390, "dark", 844)])
def test_five_vignettes_on_the_run_of_this_repository_say_what_to_do_next(run_app, opened, width, colours, height):
    known = cases.collect(Disk(ROOT))
    for name, number in vignettes(known).items():
        page = open_case(opened, run_app, number, width=width, colours=colours)
        heard = told(page)
        assert not SAYS.search(heard)
        assert not any(image_id in heard for image_id in known.table["image_id"])
        reveal(page, "No pneumonia")
        steps = page.get_by_text(re.compile("^Next: "))
        assert steps.count() == 1
        assert re.search(SAYS_NEXT[name], steps.inner_text())
        if name == "wrong":
            page.keyboard.press("m")
        if name == "doubt":
            page.get_by_text("What it would have said").click()
            page.get_by_text("Had it decided").wait_for()
        assert overflows(page) == 0
        assert serious(page) == []
        tall = page.locator("[data-testid=stMain]").evaluate("e => e.scrollHeight")
        photograph(page, f"{name}{'' if width > 400 else '-phone'}", max(height, tall if width < 400 else height))


def test_the_other_pages_are_photographed(run_app, opened):
    for path, height in (("", 1000), ("policy", 1150), ("evidence", 1150)):
        page = opened(f"{run_app.url}/{path}")
        settled(page)
        assert serious(page) == []
        photograph(page, path or "start", height)


def photograph(page, name, height):
    """Leave a picture of a page in demo_export/screenshots."""
    page.set_viewport_size({"width": page.viewport_size["width"], "height": height})
    page.locator("[data-testid=stMain]").evaluate("e => e.scrollTo(0, 0)")
    settled(page)
    page.screenshot(path=SHOTS / f"{name}.png")
