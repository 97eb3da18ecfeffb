"""What all tests share: examples of hypothesis have no deadline, as other work shares the cores."""

from hypothesis import settings

settings.register_profile("shared", deadline=None)
settings.load_profile("shared")
