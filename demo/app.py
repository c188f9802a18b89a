"""The case viewer, on what `dvc repro` left on disk: `make demo`."""

import argparse
import gc
import os
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import streamlit as st

from demo import answers, cases, evidence, film, maps, policy, upload
from demo.disk import Disk
from demo.page import NOT_CLINICAL, Picture, Section, figure, looked
from demo.tally import Readings, on_deferred, tally
from tmv_lib.card.words import share

DISK = Disk(Path(os.environ.get("TMV_ROOT", ".")).resolve())
# Captions and the values of sliders in full ink: as Streamlit draws them they have too little contrast.
STYLE = """<style>
.stMainBlockContainer {padding-top: 4.5rem}
[data-testid="stCaptionContainer"] {opacity: 1}
[data-testid="stSliderThumbValue"], [data-testid="stSliderThumbValue"] p {color: inherit}
.row {display: flex; flex-wrap: wrap; gap: .8rem}
.row figure {margin: 0; width: 9rem; font-size: .85rem}
.row img {width: 100%}
h1 {font-size: 1.9rem !important}
h2 {font-size: 1.35rem !important}
</style>"""
FILM = st.components.v2.component("film", css=film.STYLE, js=film.SCRIPT, isolate_styles=False)


def main() -> None:
    st.set_page_config("Trustworthy Medical Vision", layout="wide")
    shown = {"Start": start, "Cases": of_cases, "Policy": of_policy, "Evidence": of_evidence, "Upload": of_upload}
    pages = {title: st.Page(show, title=title, url_path=title.lower()) for title, show in shown.items()}
    st.session_state["pages"] = pages
    page = st.navigation(list(pages.values()), position="top")
    st.html(STYLE)
    st.markdown(said(f"**{NOT_CLINICAL}** {cases.names(DISK).note}"))
    try:
        readings()
    except ValueError as error:
        st.error(said(str(error)))
        return
    page.run()
    freeze()


@st.cache_resource(show_spinner=False)
def freeze() -> None:
    """Streamlit collects garbage after every run: spare it what stays as long as the program."""
    gc.collect()
    gc.freeze()


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


def section(each: Section) -> None:
    """A section of a page."""
    if each.title:
        st.header(each.title)
    for line in each.lines:
        st.markdown(said(line))
    if each.pictures:
        st.html(f'<div class="row">{"".join(map(figure, each.pictures))}</div>')
    if each.table is not None:
        st.table(each.table.set_index(each.table.columns[0]))


def image(picture: Picture, *, width: int | Literal["stretch", "content"] = "stretch") -> None:
    st.image(picture.image, picture.caption or None, width=width, alt=picture.alt, output_format="PNG")


# --- Start ------------------------------------------------------------------------------------------------------------


def start() -> None:
    """The verdict first."""
    if there() is None:
        return
    verdict, *others = evidence.first_page(DISK)
    st.title(verdict.title)
    head, *lines = verdict.lines
    with st.container(border=True):
        st.header(said(head))
        section(Section("", [f"**{line}**" if place == 0 else line for place, line in enumerate(lines)]))
    st.page_link(st.session_state["pages"]["Cases"], label="Read cases: your own reading first, then the system's")
    for each in others:
        bullets = [f"- {line}" for line in each.lines]
        section(Section(each.title, ["\n".join(bullets)]))


# --- Cases ------------------------------------------------------------------------------------------------------------


def of_cases() -> None:
    known = there()
    number = None if known is None else chosen(known)
    if known is None or number is None:
        return
    own = readings()
    case = known.table.loc[number]
    revealed = case["image_id"] in own.by_case
    overlays = maps.overlays(known, number) if revealed and not case["deferred"] else []
    seen, asked = st.columns(2, gap="large")
    with seen:
        st.title(f"Case {number}")
        FILM(key="film", data=film.of_case(known, number, maps.first(overlays) if overlays else None))
    with asked:
        question(known, number, own)
        if revealed:
            with st.container(border=True):
                section(answers.reveal(known, number))
            if case["deferred"] and own.by_case[case["image_id"]].answer != "none":
                with st.expander("What it would have said, and what it was"):
                    section(answers.withheld(known, number))
        if st.session_state["queue"] == cases.RANDOM:
            st.markdown(tally(known, own))
    if overlays:
        section(looked(maps.first(overlays)))
        on_demand("Maps of every network, and under mild changes", maps.further, known, number)
        on_demand("How sure, and why", cases.details, known, number)


@st.fragment
def on_demand(words: str, tell: Callable[[cases.Collection, int], list[Section]], known, number: int) -> None:
    """What is made only for who asks for it, and without making the rest of the page again."""
    if st.toggle(words, key=words):
        for each in tell(known, number):
            section(each)


def readings() -> Readings:
    """The reader's own: in the file that the command line names, or as long as the address has the same session."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--readings", type=Path)
    path = parser.parse_known_args(sys.argv[1:])[0].readings
    if path is None:
        state = st.session_state
        session = state.setdefault("session", st.query_params.get("session") or secrets.token_hex(8))
        st.query_params["session"] = session
        return kept(None, session)
    return kept(path.resolve(), "")


@st.cache_resource(max_entries=100, show_spinner=False)
def kept(path: Path | None, session: str) -> Readings:
    return Readings(path)


def chosen(known: cases.Collection) -> int | None:
    """The case to look at, which the address names too: the queue, the place in it, and what moves it."""
    queues, state, address = cases.queues(known), st.session_state, st.query_params
    for name, kind in (("queue", str), ("case", int)):  # gone from the state of widgets after another page
        if name not in state and name in address and str(address[name]).strip():
            state[name] = kind(address[name]) if kind is str or address[name].isdecimal() else None
    if state.get("queue") not in queues:
        state["queue"] = cases.RANDOM

    def move(step: int) -> None:
        state["case"] = numbers[min(max(at + step, 0), len(numbers) - 1)]

    def search() -> None:
        if state["search"] in numbers:
            state["case"] = state["search"]

    with st.container(horizontal=True, vertical_alignment="center"):
        with st.popover("Which patients"):
            key = st.selectbox(
                "Which patients",
                list(queues),
                format_func=lambda key: f"{queues[key][0]} ({len(queues[key][1])})",
                key="queue",
            )
            numbers = queues[key][1]
            st.number_input(
                "Case number", 1, len(known.table), value=None, key="search", on_change=search, placeholder="search"
            )
            if state.get("search") is not None and state["search"] not in numbers:
                st.caption(f"Case {state['search']} is not among these patients.")
        if not numbers:
            st.info("There is no such case.")
            return None
        at = numbers.index(state["case"]) if state.get("case") in numbers else 0
        st.button("Previous", key="previous", on_click=move, args=(-1,), shortcut="Left", disabled=at == 0)
        st.button("Next", key="next", on_click=move, args=(1,), shortcut="Right", disabled=at == len(numbers) - 1)
        st.markdown(f"{at + 1} of {len(numbers)}")
    if key != cases.RANDOM:
        st.caption("You chose what to see: these cases say something beforehand, and your tally is off.")
    state["case"] = numbers[at]
    address["queue"], address["case"] = key, str(numbers[at])
    return numbers[at]


def question(known: cases.Collection, number: int, own: Readings) -> None:
    """The reader's own answer, which reveals the case."""
    image_id, blind = known.table["image_id"][number], st.session_state["queue"] == cases.RANDOM
    if not blind:
        own.known.add(image_id)
    words = {"yes": known.names.positive, "no": known.names.negative, "cannot tell": "I cannot tell"}

    def commit(answer: str) -> None:
        own.commit(image_id, answer, blind=image_id not in own.known)

    if image_id in own.by_case:
        reading = own.by_case[image_id]
        told = (
            words.get(reading.answer, "none")
            if reading.counts or reading.answer == "none"
            else (f"{words[reading.answer]}, which does not count")
        )
        st.markdown(f"Your own reading: {said(told)}.")
    else:
        st.markdown("**Your own reading**, which reveals the system's and stays:")
        with st.container(horizontal=True):
            for key, (answer, word) in enumerate(words.items(), start=1):
                label = word[0].upper() + word[1:]
                st.button(label, key=f"answer {answer}", on_click=commit, args=(answer,), shortcut=str(key))
            st.button("Reveal without a reading", key="reveal", type="tertiary", on_click=commit, args=("none",))


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
        drawn = st.empty()
        st.markdown("This point, with intervals, from the command line:")
        st.code(policy.command(known, at), language=None, wrap_lines=True)
        if note := policy.prevalence_note(known, at):
            st.caption(note)
        st.caption(said(policy.measured(known)))
        if own := own_reading(known):
            st.caption(own)
        st.caption("Chosen by looking at test images, a threshold is fitted to them: choose it on validation.")
        with drawn:  # last, since it takes longest
            image(policy.curve(known, at))


def own_reading(known: cases.Collection) -> str:
    """What the reader's own readings say of the doctor that the policy assumes, or nothing."""
    found = on_deferred(known, readings())
    if not any(estimate.value is not None for estimate in found.values()):
        return ""
    words = ", ".join(f"{name} {share(estimate)}" for name, estimate in found.items())
    return f"Your own readings of the cases that it hands on: {words}. This is what the doctor's knobs assume."


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
            pixels, sections, overlays = upload.judge(
                system(known.disk.state("data/ensemble/policy.json")), known, levels
            )
    except ValueError as error:
        st.warning(said(str(error)))
        return
    shown = film.of_images(
        "upload",
        [(pixels, "The uploaded image, as the networks see it. Not for clinical use.")],
        maps.first(overlays) if overlays else None,
    )
    seen, told = st.columns(2, gap="large")
    with seen:
        FILM(key="film", data=shown)
    with told, st.container(border=True):
        for each in sections:
            section(each)
    for overlay in overlays:
        st.markdown(said(overlay.line))


@st.cache_resource(max_entries=1, show_spinner=False)
def system(state):
    """The networks and the policy on disk, as long as the policy stays the same."""
    return upload.load(DISK)


if __name__ == "__main__":
    main()
