"""The viewer in a real browser, on a small made-up run: what is seen, heard and asked for, by whom, and how wide."""

import re
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

from demo import cases, export, upload
from demo.disk import Disk
from demo.page import NOT_CLINICAL
from tests.made_world import ROOT

SAYS = re.compile(r"estimated chance|Reference label|lanted in this|person|NORMAL|lobar|answer flips|of 100 test")
PAGES = ("", "policy", "evidence", "upload")
SHOTS = ROOT / "demo_export/screenshots"


def case(app, *, deferred):
    """The number of the first case of the random queue that is deferred, or is not."""
    table = cases.collect(Disk(app.root)).table
    return int(table.index[table["deferred"] == deferred][0])


def settled(page):
    """Wait until the script behind the page has run, and what it wrote is drawn."""
    page.wait_for_function("document.querySelector('[data-test-script-state=notRunning]') !== null")
    page.wait_for_function("document.querySelector('[data-stale=true], [data-testid=stSkeleton]') === null")
    page.wait_for_timeout(400)


def go_to(page, number):
    page.get_by_label("Case number").fill(str(number))
    page.keyboard.press("Enter")
    page.get_by_role("heading", name=f"Case {number}", exact=True).wait_for()
    settled(page)


def reveal(page):
    page.get_by_role("button", name="Reveal").click()
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
    assert app.seconds() < 5
    assert not app.holds("libtorch")
    for path in PAGES[1:]:
        page.get_by_role("link", name=path.capitalize()).first.click()
        page.get_by_role("heading", name=path.capitalize(), exact=True).wait_for()
        settled(page)
        assert page.get_by_text(NOT_CLINICAL).is_visible()
    hosts = {re.match(r"\w+:(//[^/]*)?", url).group() for url in page.asked}
    assert hosts <= {app.url, f"ws://localhost:{app.port}", "data:", "blob:"}


def test_before_the_reveal_nothing_gives_a_case_away(app, opened):
    page = opened(app.url)
    for number in range(1, 6):
        page.get_by_role("heading", name=f"Case {number}", exact=True).wait_for()
        settled(page)
        assert not SAYS.search(told(page))
        assert page.get_by_role("img", name="Chest radiograph").count() == 1
        page.get_by_role("button", name="Next").click()
    page.get_by_role("heading", name="Case 6", exact=True).wait_for()
    settled(page)
    pictures = {url for url in page.asked if url.endswith(".png") and "favicon" not in url}
    assert len(pictures) == 6  # one image a case, and nothing fetched ahead
    assert all(re.search(r"/media/[0-9a-f]+\.png$", url) for url in pictures)


def test_a_deferred_case_gives_nothing_away_after_the_reveal_either(app, opened):
    page = opened(app.url)
    go_to(page, case(app, deferred=True))
    reveal(page)
    assert page.get_by_text(cases.DEFERRED).is_visible()
    assert not SAYS.search(told(page))
    assert page.get_by_role("img", name="Map of").count() == 0


def test_a_decided_case_shows_maps_that_are_off_at_first(app, opened):
    page = opened(app.url)
    go_to(page, case(app, deferred=False))
    reveal(page)
    overlay = page.get_by_role("img", name="Map of densenet121")
    assert "A map shows where the model looked, not where disease is." in overlay.get_attribute("alt")
    before = overlay.get_attribute("src")
    plain = page.get_by_role("img", name="Chest radiograph").first
    assert plain.is_visible()
    page.get_by_role("slider", name="Opacity of the maps").focus()
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    expect(overlay).not_to_have_attribute("src", before)  # the slider waits a moment before it tells the app
    assert page.get_by_role("img", name="Map of an untrained densenet121").is_visible()
    assert page.get_by_role("heading", name=re.compile("^Case")).inner_text() == f"Case {case(app, deferred=False)}"


def test_the_keyboard_alone_is_enough(app, opened):
    page = opened(app.url)
    settled(page)
    page.keyboard.press("ArrowRight")
    page.get_by_role("heading", name="Case 2", exact=True).wait_for()
    page.keyboard.press("ArrowLeft")
    page.get_by_role("heading", name="Case 1", exact=True).wait_for()
    settled(page)
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.type") == "radio":
            break
    page.keyboard.press("Space")
    settled(page)
    for _ in range(10):
        page.keyboard.press("Tab")
        if "Reveal" in page.evaluate("document.activeElement.innerText"):
            break
    page.keyboard.press("Enter")
    page.get_by_text("Your own reading: pneumonia.").wait_for()
    assert page.get_by_role("heading", name="Case 1", exact=True).is_visible()


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
    page = opened(app.url, width=width, colours=colours)
    for deferred in (False, True):
        go_to(page, case(app, deferred=deferred))
        reveal(page)
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
    page.get_by_label("Opacity of the maps").fill("1")
    assert page.locator(".map").first.evaluate("e => getComputedStyle(e).opacity") == "1"
    page.goto(f"file://{tmp_path}/case-1.html")
    page.keyboard.press("ArrowRight")
    page.get_by_role("heading", name="Case 2", exact=True).wait_for()
    assert not wrong
    assert {url.split(":")[0] for url in page.asked} <= {"file", "data"}


@pytest.mark.skipif(not (ROOT / "data/ensemble/policy.json").exists(), reason="needs a run: `make repro`")
def test_a_photograph_of_a_cat_is_not_diagnosed_and_a_radiograph_is_read():
    disk = Disk(ROOT)
    system, known = upload.load(disk), cases.collect(disk)
    _, refused = upload.judge(system, known, upload.read(png(data.chelsea())))
    assert [each.lines[0] for each in refused] == [f"**{upload.REFUSED}**"]
    assert not SAYS.search(" ".join(refused[0].lines))
    assert not refused[0].overlays
    read = [upload.judge(system, known, cases.image(known, number)) for number in known.table.index[:3]]
    for (_, sections), case in zip(read, known.table.iloc, strict=False):
        said = " ".join(sections[0].lines)
        if case["deferred"]:
            assert cases.DEFERRED in said
        else:
            assert f"estimated chance {cases.of_hundred(case['y_prob'])} of 100" in said


def test_the_run_of_this_repository_keeps_its_cases_to_itself_and_is_photographed(run_app, opened):
    table = cases.collect(Disk(ROOT)).table
    page = opened(run_app.url)
    for number in range(1, 5):
        go_to(page, number)
        heard = told(page)
        assert not SAYS.search(heard)
        assert not any(image_id in heard for image_id in table["image_id"])
    go_to(page, case(run_app, deferred=True))
    reveal(page)
    assert not SAYS.search(told(page))
    photograph(page, "deferred", 720)

    page = opened(run_app.url)
    go_to(page, int(table.index[table["wrong"] & table["kind"].notna()][0]))
    page.get_by_text("no pneumonia", exact=True).click()
    reveal(page)
    page.get_by_role("slider", name="Opacity of the maps").focus()
    for _ in range(12):
        page.keyboard.press("ArrowRight")
    settled(page)
    assert overflows(page) == 0
    photograph(page, "case", 1990)
    for path in ("policy", "evidence"):
        page = opened(f"{run_app.url}/{path}")
        settled(page)
        assert serious(page) == []
        photograph(page, path, 1150)
    phone = opened(run_app.url, width=390, colours="dark")
    settled(phone)
    photograph(phone, "phone", 1250)


def photograph(page, name, height):
    """Leave a picture of a page in demo_export/screenshots."""
    page.set_viewport_size({"width": page.viewport_size["width"], "height": height})
    page.locator("[data-testid=stMain]").evaluate("e => e.scrollTo(0, 0)")
    settled(page)
    page.screenshot(path=SHOTS / f"{name}.png")
