"""What no measurement says about a model and a person must: `card.yaml`."""

import re
from typing import Annotated

from pydantic import StringConstraints

from tmv_lib.card.words import NOT_MEASURED
from tmv_lib.pipeline.params import Params

Fact = Annotated[str, StringConstraints(min_length=1, max_length=160, strip_whitespace=True)]
Noun = Annotated[str, StringConstraints(min_length=1, max_length=60, strip_whitespace=True)]
# How a person says in card.yaml that there is nothing to say.
NOTHING = ("not done", "none", "nobody", "nowhere")


class Facts(Params):
    """What a person writes about a model, a text each; one in <angle brackets> is a placeholder.

    written_for: the source of the images that all this is about. cases: what one image each is of, in the plural.
    positive: what `y_true` = 1 means.
    """

    written_for: Noun
    name: Noun
    cases: Noun
    positive: Noun
    intended_use: Fact
    not_for: Fact
    users: Fact
    population: Fact
    place: Fact
    reference_standard: Fact
    owner: Fact
    contact: Fact
    monitoring: Fact
    external_validation: Fact
    human_ai_test: Fact
    ethics: Fact
    funding: Fact

    def left_open(self) -> list[str]:
        """Names of the facts that are still placeholders."""
        return [name for name, text in self if re.fullmatch(r"<.*>", text)]

    def filled(self) -> list[str]:
        """Names of the facts that say something."""
        return [name for name, text in self if name not in self.left_open() and not text.startswith(NOTHING)]

    def about(self, source: str) -> "Facts":
        """These facts for images of `source`: placeholders all of them where they were written for another."""
        if source == self.written_for:
            return self
        texts = {name: f"<nothing for {source} yet>" for name, _ in self}
        return Facts(**texts | {"written_for": self.written_for, "cases": "cases", "positive": "the finding"})

    def text(self, name: str) -> str:
        """A fact, or "not measured" with the placeholder that stands in its place."""
        text = str(getattr(self, name))
        return f"{NOT_MEASURED}: card.yaml has {text}" if name in self.left_open() else text

    def warning(self) -> str:
        """Which facts nobody has written, in words; "" where all are."""
        left = self.left_open()
        rests = "What stands here rests on figures alone; let nobody rely on it before that is written."
        return f"Nobody has written in card.yaml: {', '.join(left)}. {rests}" if left else ""
