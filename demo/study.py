"""The page of a reader study: one case at a time, each reading on disk before the next: `make demo STUDY=plan.yaml`."""

import os
import time
from datetime import UTC, datetime
from pathlib import Path

import streamlit as st

from demo import cases, film, session
from demo.disk import Disk
from demo.page import NOT_CLINICAL
from tmv_lib.readers.readings import ANSWERS

DISK = Disk(Path(os.environ.get("TMV_ROOT", ".")).resolve())
PLAN = Path(os.environ.get("TMV_STUDY", "plan.yaml"))
FILM = st.components.v2.component("film", css=film.STYLE, js=film.SCRIPT, isolate_styles=False)
SCALE = range(0, 101, 10)  # of the confidence


def main() -> None:
    st.set_page_config("Reader study", layout="wide")
    st.markdown(NOT_CLINICAL)
    try:
        known = cases.collect(DISK)
        study = session.plan(PLAN, known)
        reader = st.query_params.get("reader")  # it survives a reload
        if reader not in study.readers:
            choose(study.readers)
            return
        one = session.begin(known, study, reader)
    except (OSError, ValueError) as error:
        st.error(str(error))
        return
    at = session.place(one)
    if at is None:
        st.title("Thank you")
        st.markdown(f"All {len(one.order)} cases are read, and every answer is saved.")
        return
    opens = session.opens(one, at)
    if opens is not None and datetime.now(UTC) < opens:
        st.title(f"Session {at.session - 1} is done")
        st.markdown(f"Everything is saved. The next session opens on {opens:%d %B %Y, %H:%M} UTC.")
        return
    st.title(f"Case {at.position} of {len(one.order)}")
    seen, asked = st.columns([3, 2], gap="large")
    with seen:
        alt = f"{known.names.image} {at.position}, to be read. Not for clinical use."
        FILM(key="film", data=film.of_images(alt, [(cases.image(known, at.number), alt)]))
    with asked:
        ask(one, at)


def choose(readers: list[str]) -> None:
    """The first page."""
    st.title("Reader study")
    st.markdown("Each answer is saved as you give it: you may stop after any case, and go on later.")
    chosen = st.selectbox("Who reads?", readers, index=None, key="reader")
    if chosen is not None:
        st.query_params["reader"] = chosen
        st.rerun()


def ask(one: session.Session, at: session.Place) -> None:
    """What the reader says of a case; at the second step what the system says as well."""
    for line in session.said(one, at):
        st.markdown(line)
    n_done = len(one.done)
    begun = st.session_state.setdefault(f"begun {n_done}", time.monotonic())
    words = dict(zip(ANSWERS, (one.known.names.positive, one.known.names.negative), strict=False))
    answer_before, confidence_before = at.before or (None, None)
    with st.form(f"form {n_done}", border=False):
        answer = st.radio(
            "Your reading" if at.before is None else "Your reading, now that you know what the system says",
            list(words),
            index=None if answer_before is None else list(words).index(answer_before),
            format_func=words.__getitem__,
            key=f"answer {n_done}",
        )
        confidence = st.radio(
            f"How sure are you that there is {one.known.names.positive}? 0: surely not, 100: surely",
            SCALE,
            index=None if confidence_before is None else SCALE.index(confidence_before),
            horizontal=True,
            key=f"confidence {n_done}",
        )
        saved = st.form_submit_button("Save", type="primary")
    if not saved:
        return
    if answer is None or confidence is None:
        st.warning("Answer both questions.")
        return
    try:
        # a second window of the same reader may have gone on meanwhile
        if len(session.begin(one.known, one.study, one.reader).done) == n_done:
            seconds = time.monotonic() - begun
            session.commit(one, at, answer=answer, confidence=confidence, seconds=seconds, time=datetime.now(UTC))
    except OSError as error:
        st.error(str(error))
        return
    st.rerun()


if __name__ == "__main__":
    main()
