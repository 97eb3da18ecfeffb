"""A trial as Ray Tune sees it: it says that it begins, and passes results on. Loads no torch.

The job is run by one of the search's lanes; stopping the trial is telling the exchange that nobody
waits for it any more. The process is used again for the next trial. One that dies is started anew
by Ray Tune, and hears the trial's news again, from the first on.
"""

import math
from typing import Any

import ray
from ray import tune

from .exchange import NAMESPACE, News
from .spec import STEP, goal_name

ON_THE_HEAD = "node:__internal_head__"
"""A resource of Ray's head: a trial's driver, which computes nothing, takes no CPU."""


class Trial(tune.Trainable):
    """Results of one trial, as they come."""

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        return tune.PlacementGroupFactory([{ON_THE_HEAD: 0.001}])

    def setup(self, config: dict[str, Any]) -> None:
        self._exchange: Any = ray.get_actor(config["exchange"], namespace=NAMESPACE)
        self._number, self._heard = int(config["number"]), 0
        self._begun = self._over = False
        self._nothing = {goal_name(index): math.nan for index in range(config["goals"])}

    def step(self) -> dict[str, Any]:
        if not self._begun:  # not in `setup`: Ray Tune may start a process and never use it
            self._begun = True
            ray.get(self._exchange.say.remote("begin", self._number))
        news: News | None = ray.get(self._exchange.news.remote(self._number, self._heard))
        self._heard += 1
        if news is None or news.failed:  # or the search is stopping, and nobody looks at these
            self._over = True
            return {STEP: 0, **self._nothing, "done": True}
        self._over = news.last
        return {**news.numbers, "done": news.last}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        self.setup(new_config)
        return True

    def cleanup(self) -> None:
        if self._begun and not self._over:
            self._over = True
            ray.get(self._exchange.say.remote("leave", self._number))

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        return {}  # a run's own checkpoints are what it goes on from

    def load_checkpoint(self, checkpoint: Any) -> None:
        pass
