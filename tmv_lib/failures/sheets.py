"""Case studies: a sheet per kind of failure, with images, maps, the evidence, and what the kind needs."""

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from tmv_lib.failures import taxonomy
from tmv_lib.failures.answer import queues
from tmv_lib.pipeline import pictures
from tmv_lib.pipeline.files import Images


def sheets(
    errors: pd.DataFrame, image_id: pd.Series, images: Images, maps: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, pictures.Figure]]:
    """The name and the sheet of each kind that occurs. images, maps of each member: (n, ., .), rows as image_id."""
    row_of = {name: row for row, name in enumerate(image_id)}
    for kind, queue in queues(errors).items():
        if queue.empty:
            continue
        chosen = queue.loc[taxonomy.spread(queue["probability"], typical=3, unsure=2)]
        rows = []
        for case in chosen.itertuples():
            row, sign = row_of[case.image_id], 1 if case.y_prob > 0.5 else -1
            panels = [(name, images[row], of[row] * sign) for name, of in maps.items()]
            label, name = ("negative", "positive")[case.y_true], case.image_id.rpartition("/")[2][-24:]
            facts = f"{name}\nlabelled {label},\nensemble says {case.y_prob:.0%} positive"
            sure = "" if case.best == "site" else f" {case.probability:.0%}"  # there it is the label's
            nearest = f"{case.best}{sure}, next {case.runner_up}"
            rows.append((facts, images[row], panels, f"{_capital(nearest)}.\n{_capital(case.reason)}."))
        first, last = ("nearest to a kind", "farthest") if kind == "undetermined" else ("most typical", "least sure")
        number = f" ({len(chosen)} of {len(queue)}, the {first} first, the {last} last; maps are for the answer given)"
        title = f"{_capital(kind)}{number}\nIt needs: {taxonomy.NEEDS[kind]}"
        yield kind.replace(" ", "_"), pictures.case_sheet(rows, title=title)


def _capital(words: str) -> str:
    """Words as the beginning of a sentence."""
    return words[0].upper() + words[1:]
