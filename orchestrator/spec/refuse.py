"""How a cross-field rule says which field it means."""

from pydantic_core import PydanticCustomError


def refusal(field: str, problem: str, remedy: str) -> PydanticCustomError:
    """An error for a model validator to raise, about a field below the model.

    Args:
        field: dotted path below the validated model, as in the job file.
        problem: what is wrong, with the value and the limit.
        remedy: what to do about it.
    """
    return PydanticCustomError(
        "refused",
        "{field}: {problem}. {remedy}",
        {"field": field, "problem": problem, "remedy": remedy},
    )
