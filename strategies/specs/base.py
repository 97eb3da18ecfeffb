"""What every part of a job file shares. Pydantic only."""

from pydantic import BaseModel, ConfigDict


class Spec(BaseModel):
    """Frozen, and unknown keys are errors: a typo must not become a default."""

    # Built on first use: processes that only pass specs on never pay for it.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)
