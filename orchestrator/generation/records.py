"""What is to be written, and how far it is. Frozen, picklable; neither torch nor ray."""

from dataclasses import dataclass

from orchestrator.spec.data import GeneratedSource
from orchestrator.spec.models import RoleSpec


@dataclass(frozen=True, slots=True)
class Task:
    """One source to be written."""

    role: str
    spec: RoleSpec  # `registry` and `job` sources made folders
    tokenizer: str  # folder of the role's
    source: GeneratedSource
    deterministic: bool = False  # each text alone: to the last bit, whatever shares a batch
    seed: int = 0  # of fresh weights


@dataclass(frozen=True, slots=True)
class Text:
    """One text, by its place among the source's."""

    index: int
    prompt: str
    completion: str

    def record(self) -> dict[str, str]:
        """A line of a JSONL source of these texts."""
        text = self.prompt + self.completion
        return {
            "id": f"generated-{self.index}",
            "text": text,
            "prompt": self.prompt,
            "completion": self.completion,
        }


@dataclass(frozen=True, slots=True)
class Part:
    """Texts that one author writes in one go."""

    number: int
    begin: int  # index of its first text
    prompts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Written:
    """How far the texts are."""

    done: int  # texts there, those of an earlier run included
    count: int
    tokens_left: int  # at most
    seconds_left: float | None  # None until a part was timed
