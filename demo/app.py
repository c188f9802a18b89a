"""The case viewer, on what `dvc repro` left on disk: `make demo`."""

import os
from pathlib import Path

import streamlit as st

from demo import cases, evidence, maps, pictures, policy, tally, upload
from demo.disk import Disk
from demo.page import NOT_CLINICAL, Overlay, Picture, Section

DISK = Disk(Path(os.environ.get("TMV_ROOT", ".")).resolve())
ANSWERS = ("yes", "no", "cannot tell")
# Captions and the values of sliders in full ink: as Streamlit draws them they have too little contrast.
STYLE = """<style>
.stMainBlockContainer {padding-top: 4.5rem}
[data-testid="stCaptionContainer"] {opacity: 1}
[data-testid="stSliderThumbValue"], [data-testid="stSliderThumbValue"] p {color: inherit}
h1 {font-size: 1.9rem !important}
h2 {font-size: 1.35rem !important}
</style>"""


def main() -> None:
    st.set_page_config("Trustworthy Medical Vision", layout="wide")
    shown = {"Cases": of_cases, "Policy": of_policy, "Evidence": of_evidence, "Upload": of_upload}
    pages = [st.Page(show, title=title, url_path=title.lower()) for title, show in shown.items()]
    page = st.navigation(pages, position="top")
    st.html(STYLE)
    note = cases.names(DISK).note
    st.markdown(said(f"**{NOT_CLINICAL}** {note}"))
    page.run()


def said(words: str) -> str:
    """Words for Markdown, in which nothing but our own bold and code means anything."""
    for mark in "$~[]<_":
        words = words.replace(mark, f"\\{mark}")
    return words


def there() -> cases.Collection | None:
    """The cases, or the sentence that says which command makes them."""
    if lacking := cases.missing(DISK):
        st.info(
            f"Nothing to show yet: `{lacking[0]}` is not there. Run `make repro`, or `dvc repro`, and reload this page."
        )
        return None
    return cases.collect(DISK)


# --- Cases ------------------------------------------------------------------------------------------------------------


def of_cases() -> None:
    known = there()
    number = None if known is None else chosen(known)
    if known is None or number is None:
        return
    if words := evidence.judgement(DISK):
        st.info(said(f"**{words[0]}** {words[1]}"))
    st.title(f"Case {number}")
    seen, asked = st.columns(2, gap="large")
    with seen:
        view = plain_image(known, number)
    sections = []
    with asked:
        if question(known, number):
            sections = maps.revealed(known, number)
            with st.container(border=True):
                section(sections[0])
    for each in sections[1:]:
        section(each, view)


def chosen(known: cases.Collection) -> int | None:
    """The case to look at: the queue, the place in it, and the buttons that move it."""
    queues = cases.queues(known)
    state = st.session_state
    picked, searched = st.columns(2)
    key = picked.selectbox(
        "Which patients", list(queues), format_func=lambda key: f"{queues[key][0]} ({len(queues[key][1])})", key="queue"
    )
    if key != cases.RANDOM:
        picked.caption("You chose what to see: these cases say something beforehand, and your tally is off.")
    numbers = queues[key][1]
    if not numbers:
        st.info("There is no such case.")
        return None
    at = min(state.get(f"place {key}", 0), len(numbers) - 1)

    def move(step: int) -> None:
        state[f"place {key}"] = min(max(at + step, 0), len(numbers) - 1)

    def search() -> None:
        if state["search"] in numbers:
            state[f"place {key}"] = numbers.index(state["search"])

    searched.number_input(
        "Case number", 1, len(known.table), value=None, key="search", on_change=search, placeholder="search"
    )
    if state.get("search") is not None and state["search"] not in numbers:
        searched.caption(f"Case {state['search']} is not among these patients.")
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button("Previous", key="previous", on_click=move, args=(-1,), shortcut="Left", disabled=at == 0)
        st.button("Next", key="next", on_click=move, args=(1,), shortcut="Right", disabled=at == len(numbers) - 1)
        st.markdown(f"{at + 1} of {len(numbers)}")
    return numbers[at]


def plain_image(known: cases.Collection, number: int) -> "View":
    """The image with brightness and zoom; returns how it was looked at."""
    spot = st.empty()
    brightness = st.slider("Brightness", -50, 50, 0, 5, format="%d %%", key="brightness")
    zoom = st.slider("Zoom", 1.0, 4.0, 1.0, 0.5, format="%g ×", key="zoom")
    across = down = 50
    if zoom > 1:
        across = st.slider("Left to right", 0, 100, 50, 5, format="%d %%", key="across")
        down = st.slider("Top to bottom", 0, 100, 50, 5, format="%d %%", key="down")
    pixels, alt = pictures.view(cases.image(known, number)), cases.image_alt(known, number)
    view = View(pixels, alt, brightness / 100, zoom=zoom, across=across / 100, down=down / 100)
    image(Picture(pictures.png(view.plain()), alt, ""), spot)
    return view


class View:
    """An image as it is looked at, and how maps are laid over it in the same way."""

    def __init__(self, pixels, alt, brightness=0.0, **frame) -> None:
        self.pixels, self.alt, self.brightness, self.frame = pixels, alt, brightness, frame

    def framed(self, pixels):
        return pictures.zoomed(pixels, **self.frame) if self.frame else pixels

    def plain(self):
        return self.framed(pictures.brightened(self.pixels, share=self.brightness))

    def under(self, attribution, *, opacity: float):
        return pictures.over(self.plain(), self.framed(pictures.coloured(attribution)), opacity=opacity)


def image(picture: Picture, spot=st, *, width: int | str = "stretch") -> None:
    spot.image(picture.image, picture.caption or None, width=width, alt=picture.alt, output_format="PNG")


def question(known: cases.Collection, number: int) -> bool:
    """The reader's own answer, then the reveal; returns whether the case is revealed."""
    state = st.session_state
    revealed, answers, known_before = (
        state.setdefault(name, kind()) for name, kind in (("revealed", set), ("answers", dict), ("known before", set))
    )
    blind = state["queue"] == cases.RANDOM
    if not blind:
        known_before.add(number)
    words = dict(zip(ANSWERS, (known.names.positive, known.names.negative, "I cannot tell"), strict=True))

    def reveal() -> None:
        revealed.add(number)
        if reading is not None and number not in known_before:
            answers[number] = reading

    if number in revealed:
        st.markdown(f"Your own reading: {said(words.get(answers.get(number), 'none that counts'))}.")
    else:
        reading = st.radio(
            "Your own reading, before the system's",
            ANSWERS,
            index=None,
            format_func=words.__getitem__,
            key=f"reading {number}",
        )
        st.button("Reveal what the system says", type="primary", key="reveal", on_click=reveal)
        st.caption("You need not: go on to the next case, or reveal without an answer, which counts for nobody.")
    if blind:
        st.markdown(tally.tally(known, answers.items()))
    return number in revealed


def section(each: Section, view: View | None = None) -> None:
    """A section of a page; its maps are laid over the view."""
    if each.title:
        st.header(each.title)
    for line in each.lines:
        st.markdown(said(line))
    if each.overlays and view:
        opacity = st.slider("Opacity of the maps", 0, 100, 0, 5, format="%d %%", key="opacity") / 100
        for overlay in each.overlays:
            laid(overlay, view, opacity)
    if each.pictures:
        with st.container(horizontal=True):
            for picture in each.pictures:
                image(picture, width="stretch" if isinstance(picture.image, str) else 120)
    if each.table is not None:
        st.table(each.table.set_index(each.table.columns[0]))


def laid(overlay: Overlay, view: View, opacity: float) -> None:
    """One member's maps over an image, beside the image alone."""
    st.markdown(said(overlay.line))
    shown = [Picture(pictures.png(view.plain()), view.alt, "the image alone")]
    for attribution, words, caption in overlay.panels:
        if attribution is None:
            st.markdown(said(words))
            continue
        shown.append(Picture(pictures.png(view.under(attribution, opacity=opacity)), words, caption))
    for place, picture in zip(st.columns(3), shown):
        image(picture, place)
    st.caption(overlay.sizes)


# --- Policy -----------------------------------------------------------------------------------------------------------


def of_policy() -> None:
    st.title("Policy")
    known = there()
    if known is None:
        return
    run = policy.knobs(known)
    turned, told = st.columns(2, gap="large")
    with turned:
        turns = {
            name: st.slider(knob.words, knob.low, max(knob.high, getattr(run, name)), getattr(run, name), knob.step)
            for name, knob in policy.KNOBS.items()
        }
        percent = round(100 * run.prevalence)
        of_hundred = st.slider(f"Of 100 patients have {known.names.positive}", 1, 99, percent, key="prevalence")
    at = policy.Knobs(**turns, prevalence=run.prevalence if of_hundred == percent else of_hundred / 100)
    with told:
        section(policy.answer(known, at))
        st.markdown("This point, with intervals, from the command line:")
        st.code(policy.command(known, at), language=None, wrap_lines=True)
        if note := policy.prevalence_note(known, at):
            st.caption(note)
        st.caption(said(policy.measured(known)))
        st.caption("Chosen by looking at test images, a threshold is fitted to them: choose it on validation.")


# --- Evidence ---------------------------------------------------------------------------------------------------------


def of_evidence() -> None:
    st.title("Evidence")
    compared()
    for each in evidence.questions(DISK):
        st.header(each.question)
        st.markdown(said(each.answer))
        with st.expander("What it does not show, and its diagrams", key=f"open {each.stage}"):
            st.markdown(said(each.limit))
            with st.container(horizontal=True):
                for picture in evidence.plots(DISK, each.stage):
                    diagram = isinstance(picture.image, str)
                    with st.container(width=640 if diagram else "stretch"):
                        st.markdown(f"**{said(picture.caption)}**")
                        image(picture._replace(caption=""), width="stretch" if diagram else "content")


def compared() -> None:
    """The figures here beside those of another git revision, where there is one."""
    revisions = evidence.revisions(DISK)
    if not revisions:
        return
    picked = st.selectbox(
        "Compare with another revision", revisions, index=None, key="revision", accept_new_options=True
    )
    if not picked:
        return
    table = evidence.compared(DISK, picked.split(" ")[0])
    if table is None:
        st.info("There is no such revision.")
    else:
        st.table(table.set_index("figure"))


# --- Upload -----------------------------------------------------------------------------------------------------------


def of_upload() -> None:
    st.title("Upload")
    st.markdown(
        "One image as PNG, JPEG or DICOM. It is read in memory, on this computer, and forgotten when you leave;"
        " nothing of it is kept."
    )
    given = st.file_uploader("An image", upload.KINDS, max_upload_size=upload.MOST_BYTES >> 20)
    if given is None:
        return
    try:
        levels = upload.read(given.getvalue(), channels=upload.channels(DISK))
    except ValueError as error:
        st.warning(said(str(error)))
        return
    known = there()
    if known is None:
        return
    try:
        with st.spinner("Reading the networks and the image"):
            pixels, sections = upload.judge(system(known.disk.state("data/ensemble/policy.json")), known, levels)
    except ValueError as error:
        st.warning(said(str(error)))
        return
    seen, told = st.columns(2, gap="large")
    view = View(pictures.view(pixels), "The uploaded image alone.")
    with seen:
        alt = "The uploaded image. Not for clinical use."
        image(Picture(pictures.png(view.plain()), alt, "as the networks see it"))
    with told, st.container(border=True):
        section(sections[0])
    for each in sections[1:]:
        section(each, view)


@st.cache_resource(max_entries=1, show_spinner=False)
def system(state):
    """The networks and the policy on disk, as long as the policy stays the same."""
    return upload.load(DISK)


main()
