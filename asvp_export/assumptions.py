"""What loading a model concluded where it could have concluded something else."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Assumption:
    """One conclusion about a model, with its reason, and the option that says otherwise."""

    about: str
    """Its subject: "main output", "value range", "sizes", "scale", "layout", "normalisation", "weights", "batch"."""

    concluded: str
    """What was concluded, in a few words: "0..1"."""

    because: str
    """From what, as the rest of a sentence: "its output follows a picture in this range"."""

    certain: bool
    """Whether the evidence leaves no other reading. The commands print those that are not certain."""

    option: str = ""
    """What overrides it on the command line, "--data-range LOW..HIGH"; "" where nothing does."""

    def __str__(self) -> str:
        override = f"; {self.option} overrides it" if self.option else ""
        return f"{self.about}: {self.concluded}, because {self.because}{override}"

    def as_dict(self) -> dict[str, object]:
        """For JSON: the fields by their names."""
        return asdict(self)
